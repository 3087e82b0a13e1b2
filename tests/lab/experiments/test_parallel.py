"""Several processes (gloo), started by torchrun or as it starts them: the losses of one with the whole batch."""

import json
import os
import shutil
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
for _package in ("lightning_fabric", "rich", "matplotlib"):
    pytest.importorskip(_package)

from processes import command  # noqa: E402
from rmsnorm.cli import main  # noqa: E402
from rmsnorm_lab import experiments  # noqa: E402
from rmsnorm_lab.errors import UserError  # noqa: E402
from rmsnorm_lab.experiments import tasks  # noqa: E402
from rmsnorm_lab.experiments.learner import (  # noqa: E402
    Learner,
    Setup,
    fabric_for,
)
from rmsnorm_lab.experiments.recipes import settings  # noqa: E402
from tiny_runs import TINY, corpus  # noqa: E402


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("text"))


def arguments(text, out, *more, steps=12):
    # 15 windows over two processes: parts of unequal size
    where = ["--data", str(text), "--out", str(out), "--threads", "1", "--steps", str(steps)]
    return ["train", "language", "--norm", "rms", *where, "--set", *TINY, "train.batch=15", *more]


def torchrun(processes, command):
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [*run, "-m", "rmsnorm.cli", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, done.stderr


def result(out):
    (path,) = out.glob("*.jsonl")
    return json.loads(path.read_text())["result"]


@pytest.fixture(scope="module")
def alone(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    threads = torch.get_num_threads()
    assert main(arguments(text, out, "train.clip=global")) == 0
    torch.set_num_threads(threads)
    return result(out)


SHARDED = ("train.clip=global", "train.accumulate=3")
OWN = "import torch\n\ndef Same(width):\n    return torch.nn.RMSNorm(width, eps=1e-5)\n"


@pytest.fixture(scope="module")
def sharded(text, tmp_path_factory):
    """(folder, what it said) of a run with FSDP, with checkpoints at 5, 10 and the end; the last two are kept."""
    out = tmp_path_factory.mktemp("sharded")
    words = arguments(text, out, *SHARDED, "--strategy", "fsdp", "--checkpoint-every", "5")
    return out, command(2, words, tmp_path_factory.mktemp("said"))


@pytest.mark.parametrize(("strategy", "parts", "own"), [("ddp", 1, False), ("ddp", 3, True), ("fsdp", 3, False)])
def test_two_processes_come_to_the_losses_of_one(text, tmp_path, alone, request, strategy, parts, own):
    accumulate, norm = f"train.accumulate={parts}", []
    if own:
        path = tmp_path / "my_norm.py"
        path.write_text(OWN)
        norm = ["--norm", f"{path}:Same"]
    if strategy == "fsdp":
        out, (said, errors) = request.getfixturevalue("sharded")
    else:
        out = tmp_path / "out"
        words = arguments(text, out, "train.clip=global", accumulate, "--strategy", strategy, *norm)
        said, errors = torchrun(2, words) if parts == 1 else command(2, words, tmp_path)
    both = result(out)
    assert both["curve"]["step"] == alone["curve"]["step"]
    for key in ("train_loss", "valid"):
        ours, theirs = ((r["curve"]["valid"]["bits"] if key == "valid" else r["curve"][key]) for r in (both, alone))
        assert ours[1:] == pytest.approx(theirs[1:], rel=1e-5)
    assert both["quality"]["bits"] == pytest.approx(alone["quality"]["bits"], rel=1e-5)
    assert said.count("record: ") == 1  # one process speaks
    assert "distributed" not in errors  # and no library
    found = experiments.load(out).evaluate(text)[1]  # the kept network is whole, with one process or several
    assert found["bits"] == pytest.approx(both["quality"]["bits"], rel=1e-6)
    (path,) = out.glob("*.jsonl")
    assert path.name.endswith(f"-{strategy}2.jsonl")
    assert json.loads(path.read_text())["identity"]["processes"] == f"{strategy}2"
    if parts == 1:
        words = arguments(text, out, "train.clip=global", accumulate)
        assert "recorded in" in command(2, words, tmp_path)[1]
        assert main(words) == 0  # one process: another run, from the start
        (own,) = (json.loads(each.read_text()) for each in out.glob("*.jsonl") if each != path)
        assert "processes" not in own["identity"]
        assert own["result"]["curve"]["valid"] == alone["curve"]["valid"]


def test_a_sharded_run_is_resumed_by_one_process(text, tmp_path, sharded, alone, capsys):
    """A checkpoint is whole, written by one process or by several."""
    shutil.copytree(sharded[0], tmp_path, dirs_exist_ok=True)
    words = arguments(text, tmp_path, *SHARDED)
    (record,) = tmp_path.glob("*.jsonl")
    record.unlink()
    kept = sorted((tmp_path / "checkpoints").glob("*.pt"))
    kept[-1].unlink()  # the one at the end
    assert main(words) == 0
    assert result(tmp_path)["quality"]["bits"] == pytest.approx(alone["quality"]["bits"], rel=1e-5)
    (record,) = tmp_path.glob("*.jsonl")
    assert json.loads(record.read_text())["identity"]["processes"] == "fsdp2-then-1"
    capsys.readouterr()
    assert main(words) == 0
    assert "recorded in" in capsys.readouterr().err


def test_a_numbered_device_is_refused_under_torchrun(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match="takes a device of its own; got --device cuda:0"):
        fabric_for(Setup(device="cuda:0"))


def test_a_batch_normalised_network_is_evaluated_as_it_is_kept(text, tmp_path):
    """Each process has running statistics of its own slices: the figures must be those of what a checkpoint keeps."""
    chunks = ["model.context=8", "data.evaluation_windows=120"]  # two of evaluation: each process has one
    sizes = [*(size for size in TINY if "context" not in size and "windows" not in size), *chunks]
    out = tmp_path / "out"
    words = [each for each in arguments(text, out, steps=6) if each not in TINY] + sizes
    words[words.index("--norm") + 1] = "batch"
    command(2, words, tmp_path)
    (record,) = (json.loads(path.read_text()) for path in out.glob("*.jsonl"))
    recipe = settings.changed(tasks.recipe("language"), [*sizes, "train.batch=15", "train.steps=6"])
    learner = Learner(tasks.load("language", text, recipe), Setup(), "batch", 0)
    last = sorted((out / "checkpoints").glob("*.pt"))[-1]
    learner.network().load_state_dict(torch.load(last, weights_only=True)["model"])
    assert learner.evaluate("test")["bits"] == pytest.approx(record["result"]["quality"]["bits"], rel=1e-5)
