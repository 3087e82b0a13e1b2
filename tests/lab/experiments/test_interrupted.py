"""A comparison that is interrupted goes on from there, and comes out the same."""

import contextlib
import io
import shutil
import signal
import subprocess
import sys
import time

import pytest

torch = pytest.importorskip("torch")
for _package in ("lightning_fabric", "rich", "matplotlib"):
    pytest.importorskip(_package)

from rmsnorm.cli import main  # noqa: E402
from rmsnorm_lab.experiments import store  # noqa: E402
from tiny_runs import RUNS, contents, corpus, language  # noqa: E402


def started(arguments, out):
    """The command in a process of its own, once its first training run is recorded."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rmsnorm.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Started in the background by a shell, the tests ignore SIGINT, and what they start would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while process.poll() is None and len(contents(out)) < 1 and time.monotonic() < deadline:
        time.sleep(0.005)
    return process


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """(arguments, folder, output) of a comparison long enough that a signal comes before its end."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    corpus(folder)
    arguments = language(folder / "runs", "--timing-rounds", "0", steps=30)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(arguments) == 0
    return arguments, folder / "runs", said.getvalue()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_comparison_goes_on_and_comes_out_the_same(uninterrupted, capsys, how):
    arguments, out, expected = uninterrupted
    shutil.rmtree(out)

    process = started(arguments, out)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    left = contents(out)
    assert 1 <= len(left) < RUNS, errors
    assert len(store.load(out)) == len(left)  # what is there is whole
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert f"of {RUNS} finished and kept in {out}" in errors
        assert "goes on from there" in errors
        assert "Traceback" not in errors
    else:
        assert process.returncode == -signal.SIGKILL

    assert main(arguments) == 0
    assert capsys.readouterr().out == expected
    assert {name: contents(out)[name] for name in left} == left
