"""Which compiled nodes and operators are loaded, and how `rmsnorm build-nodes` makes them where there are none."""

import shutil
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from rmsnorm import build_nodes  # noqa: E402
from rmsnorm.torch import node_files  # noqa: E402
from rmsnorm.torch.norm.eager import nodes, why_no_nodes  # noqa: E402
from rmsnorm.torch.registration import why_no_operators  # noqa: E402

if nodes is None or why_no_operators:
    pytest.skip(f"C++ nodes and operators: {why_no_nodes or why_no_operators}", allow_module_level=True)
OPERATORS = node_files.find_operators()


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """The installed module, in a cache; the installation seems to have none."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = node_files.cached(node_files.nodes_name())
    path.parent.mkdir(parents=True, mode=0o700)
    shutil.copy(nodes.__file__, path)
    monkeypatch.setattr(node_files, "import_module", _there_is_none)
    return path


def _there_is_none(name):
    raise ModuleNotFoundError(name)


def test_the_caches_module_serves_where_the_installation_has_none(cached):
    found = node_files.find_nodes()
    assert found.__file__ == str(cached)
    assert hasattr(found, "add_rms_norm")


@pytest.mark.parametrize("which", ["the file", "its folder"])
def test_a_module_that_others_can_write_is_not_loaded(cached, which):
    (cached if which == "the file" else cached.parent).chmod(0o777)
    assert node_files.find_nodes() is None


def test_another_torch_has_another_module(cached, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.99.0.dev20270101+cu140")
    assert node_files.nodes_name() == "_nodes_2_99_0_dev20270101"
    assert node_files.find_nodes() is None


def test_other_sources_have_another_place(cached, monkeypatch):
    monkeypatch.setattr(node_files.codes, "header", lambda: "another")
    assert node_files.cached(node_files.nodes_name()) != cached


def test_one_that_does_not_load_says_so(cached):
    cached.write_bytes(b"no library")
    with pytest.raises(ImportError, match=cached.name):
        node_files.find_nodes()


def test_the_caches_operators_serve_where_the_installation_has_none(cached, monkeypatch):
    monkeypatch.setattr(node_files, "find_spec", lambda name: None)
    assert node_files.find_operators() is None
    path = node_files.cached(node_files.operators_name())
    shutil.copy(OPERATORS, path)
    assert node_files.find_operators() == str(path)
    path.chmod(0o777)
    assert node_files.find_operators() is None


COMPILER = """#!{python}
import shutil, sys
out = sys.argv[sys.argv.index("-o") + 1]
if "-c" in sys.argv:
    assert "-DRMSNORM_NODES=" in " ".join(sys.argv), sys.argv
    open(out, "w").close()
else:
    shutil.copy({made}["_ops_" in out], out)
"""


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """One that copies what is installed; compiling takes a minute."""
    path = tmp_path / "g++"
    path.write_text(COMPILER.format(python=sys.executable, made=[nodes.__file__, OPERATORS]))
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys.modules["rmsnorm.torch.norm.eager"], "nodes", None)
    return path


def command(*arguments):
    import argparse

    parser = argparse.ArgumentParser()
    build_nodes.configure(parser)
    return build_nodes.run(parser.parse_args(arguments))


def test_the_command_puts_a_module_into_the_cache(compiler, capsys):
    """Also where a command was killed before: torch's build would wait for its lock without end."""
    folder = node_files.cached("").parent
    folder.mkdir(parents=True)
    (folder / "lock").touch()
    assert command() == 0
    assert "Done" in capsys.readouterr().out
    names = {node_files.nodes_name(), node_files.operators_name()}
    assert {path.name for path in folder.iterdir()} == {"lock", *(f"{name}.so" for name in names)}
    assert all(map(node_files._in_cache, names))


def test_a_compiler_that_fails_is_named(compiler, capsys):
    compiler.write_text("#!/bin/sh\necho no such machine >&2\nexit 1\n")
    assert command() == 1
    said = capsys.readouterr().err
    assert "no such machine" in said
    assert "C++20 compiler" in said
    assert "Traceback" not in said
    assert not any(node_files.cached("").parent.iterdir())


@pytest.mark.parametrize(("lacks", "says"), [("ninja", "pip install ninja"), ("c++", r"'c\+\+' is not; .* or set CXX")])
def test_what_compiling_needs_is_named(lacks, says, tmp_path, monkeypatch):
    """Ninja may lie beside Python: an environment that is not activated is not on PATH."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(node_files.sysconfig, "get_path", lambda name: str(tmp_path / name))
    for place, name in (("scripts", "ninja"), ("bin", "c++")):
        (tmp_path / place).mkdir()
        (tmp_path / place / name).touch(0o755)
    path = node_files._environment()["PATH"]
    assert shutil.which("ninja", path=path)
    next(tmp_path.glob(f"*/{lacks}")).unlink()
    with pytest.raises(RuntimeError, match=says):
        node_files.build()


def test_a_cache_that_cannot_be_written_is_named(compiler, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert command() == 1
    assert "set XDG_CACHE_HOME to another" in capsys.readouterr().err


def test_without_a_home_folder_there_is_no_cache(monkeypatch):
    def without() -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(node_files.Path, "home", without)
    monkeypatch.setattr(node_files, "import_module", _there_is_none)
    monkeypatch.setattr(node_files, "find_spec", lambda name: None)
    assert node_files.find_nodes() is None
    assert node_files.find_operators() is None


def test_the_command_says_that_they_are_there():
    done = subprocess.run(
        [sys.executable, "-m", "rmsnorm.cli", "build-nodes"], capture_output=True, text=True, check=True
    )
    assert nodes.__file__ in done.stdout
    assert OPERATORS in done.stdout
