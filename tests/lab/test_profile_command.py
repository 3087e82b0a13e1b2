"""``rmsnorm profile``: the user's file, what it must return, and what is written. No test asserts a time."""

import json
import sys

import pytest

from rmsnorm import cli

pytest.importorskip("torch")

FILE = """
import dataclasses

import torch
from torch import nn

import beside


@dataclasses.dataclass
class Settings:
    n: int = 8


def build():
    n = Settings().n
    model = nn.Sequential(nn.Linear(n, n), nn.RMSNorm(n), beside.Norm(n))
    return model, lambda model: model(torch.ones(3, n)).sum().backward()


def one():
    return nn.RMSNorm(8)


def wrong():
    return nn.RMSNorm(8), 3


def raises():
    return nn.RMSNorm(undefined)


def stops():
    def step(model):
        raise OSError("no data")

    return nn.RMSNorm(8), step


def interrupted():
    def step(model):
        raise KeyboardInterrupt

    return nn.RMSNorm(8), step


def normless():
    return nn.Linear(8, 8), lambda model: model(torch.ones(3, 8))


def short():
    return nn.RMSNorm(8), lambda model: model(torch.ones(3, 7))


def stepless():
    return nn.RMSNorm(8), lambda: 3


def leaves():
    raise SystemExit(7)
"""
BESIDE = "from torch.nn import LayerNorm as Norm\n"


@pytest.fixture
def file(tmp_path, monkeypatch):
    """The command puts the file's folder and modules where Python looks for them; they are gone after the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside.py").write_text(BESIDE)
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    yield path
    for module in ("mine", "beside"):
        sys.modules.pop(module, None)


def test_table_json_and_figure(file, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out, figure = tmp_path / "out.json", tmp_path / "out.png"
    arguments = ["--rounds", "2", "--threads", "1", "--json", str(out), "--plot", str(figure)]
    assert cli.main(["profile", f"{file}:build", *arguments]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines()[:3]] == ["norm", "RMSNorm", "LayerNorm"]
    record = json.loads(out.read_text())
    assert record["schema"] == "rmsnorm-profile/1"
    assert record["target"] == "mine.py:build"
    assert record["machine"]["versions"]["torch"]
    assert [(row["cls"], row["n"], row["rows"], row["calls"]) for row in record["norms"]] == [
        ("RMSNorm", 8, [3], 1),
        ("LayerNorm", 8, [3], 1),
    ]
    assert {len(times) for times in record["times_ns"].values()} == {2}
    assert (record["threads"], record["rounds"]) == (1, 2)
    assert str(tmp_path) not in out.read_text()
    assert figure.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("mine.py", "FILE.py:NAME must be a Python file, a colon and the name of a function in it"),
        ("none.py:build", "must be a Python file that exists; it does not"),
        ("mine.py:biuld", "mine.py must have a function 'biuld'; it has none. Did you mean 'build'?"),
        ("mine.py:one", "mine.py: one() must return a model and a step"),
        ("mine.py:wrong", "got a RMSNorm and a int."),
        ("mine.py:raises", "mine.py, line 30: raises() must return a model and a step; got NameError"),
        ("mine.py:stops", "mine.py, line 35: its model and step must run; got OSError: no data"),
        ("mine.py:short", "mine.py, line 52: its model and step must run; got RuntimeError: "),
        ("mine.py:normless", "mine.py: its model and step must run; got ValueError: the step must call a norm"),
        ("mine.py:stepless", "mine.py: its model and step must run; got TypeError"),
        ("mine.py:leaves", "leaves() must return a model and a step; got SystemExit: 7"),
        ("broken.py:build", "broken.py, line 2: must be importable; got SyntaxError"),
        (
            "lacking.py:build",
            "lacking.py, line 1: must be importable; got ModuleNotFoundError: No module named 'nothing'",
        ),
    ],
)
def test_what_is_wrong_with_the_file_is_said(target, said, file, capsys):
    (file.parent / "broken.py").write_text("import os\nbuild = = 3\n")
    (file.parent / "lacking.py").write_text("import nothing\n")
    assert cli.main(["profile", str(file.parent / target), "--rounds", "1", "--threads", "1"]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.startswith("rmsnorm profile: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--threads", "0"], "--threads must be from 1 to "),
        (["--threads", "999999"], "--threads must be from 1 to "),
        (["--rounds", "1.5"], "--rounds must be a positive number; got '1.5'."),
        (["--rounds", "-1"], "--rounds must be a positive number; got '-1'."),
        (["--seconds", "inf"], "--seconds must be a positive number; got 'inf'."),
        (["--seconds", "all"], "--seconds must be a positive number; got 'all'."),
        (["--plot", "x.txt"], "--plot must name a file that ends in .png"),
        (["--json", "."], "--json must name a file"),
    ],
)
def test_wrong_flags_are_refused_before_the_file_is_read(arguments, said, capsys):
    assert cli.main(["profile", "none.py:build", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_ctrl_c(file, capsys):
    assert cli.main(["profile", f"{file}:interrupted"]) == 130
    assert "interrupted" in capsys.readouterr().err
