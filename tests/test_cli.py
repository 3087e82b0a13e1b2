"""The frame of the command line: help, unknown names, what is imported, and a library without its laboratory."""

import subprocess
import sys

import pytest

import rmsnorm
from rmsnorm import cli


def python(source):
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_command_prints_the_help(capsys):
    assert cli.main([]) == 2
    said = capsys.readouterr().out
    assert all(f"\n    {name}" in said for name in cli.COMMANDS)


@pytest.mark.parametrize(
    ("name", "meant"), [("compair", " Did you mean 'compare'?"), ("inf", " Did you mean 'info'?"), ("xyzzy", "")]
)
def test_an_unknown_command_is_told_the_known_ones(name, meant, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main([name])
    said = " ".join(capsys.readouterr().err.split())
    assert said.endswith(f"COMMAND must be one of {', '.join(cli.COMMANDS)}; got {name!r}.{meant}")


@pytest.mark.parametrize("arguments", [["info", "--jsn"], ["--jsn"]])
def test_an_unknown_flag_is_refused(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert "unrecognized arguments: --jsn" in capsys.readouterr().err


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"rmsnorm {rmsnorm.__version__}\n"


def test_the_help_of_every_command_imports_nothing_heavy():
    said = python(
        """
import contextlib, sys
from rmsnorm import cli
for name in cli.COMMANDS:
    with contextlib.suppress(SystemExit):
        cli.main([name, "--help"])
heavy = {"torch", "numpy", "rich", "jax", "matplotlib", "jinja2", "lightning_fabric"} & sys.modules.keys()
assert not heavy, heavy
"""
    )
    assert all(f"usage: rmsnorm {name} " in said for name in cli.COMMANDS)


def test_info_is_the_librarys_alone():
    """It works where there is no laboratory, and a command of the laboratory then says what to do."""
    said = python(
        """
import sys
from rmsnorm import cli

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "rmsnorm_lab":
            raise ModuleNotFoundError(f"No module named {name!r}", name="rmsnorm_lab")

sys.meta_path.insert(0, Absent())
assert cli.main(["info"]) == 0
sys.stderr = sys.stdout
try:
    cli.main(["train", "language"])
except SystemExit as error:
    assert error.code == 2
else:
    raise AssertionError
"""
    )
    assert "backends" in said
    assert "this command needs the package rmsnorm_lab; it is not installed" in said


@pytest.mark.parametrize(
    ("package", "arguments", "whose"),
    [
        ("rich", ["bench", "--list"], "the benchmark's packages; 'rich' is not installed"),
        ("matplotlib", ["bench", "--plot", "x.png"], "the benchmark's packages; 'matplotlib' is not installed"),
        ("rich", ["invariance"], "the experiments' packages; 'rich' is not installed"),
        ("jinja2", ["report", "."], "the experiments' packages; 'jinja2' is not installed"),
    ],
)
def test_a_package_that_is_missing_is_named_before_any_work(package, arguments, whose):
    pytest.importorskip("torch")
    said = python(
        f"import sys; sys.modules[{package!r}] = None; sys.stderr = sys.stdout; from rmsnorm import cli; "
        f"assert cli.main({arguments!r}) == 2"
    )
    extra = "bench" if arguments[0] == "bench" else "experiments"
    assert said.startswith(f"rmsnorm {arguments[0]}: this command needs {whose}. Run: ")
    assert said.endswith(f" -m pip install 'rmsnorm[{extra}]'\n")
