"""Checkpoints: a killed run goes on to the same figures, to the last bit; what is damaged is refused and said."""

import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

torch = pytest.importorskip("torch")
for _package in ("lightning_fabric", "rich", "matplotlib"):
    pytest.importorskip(_package)

from rmsnorm.cli import main  # noqa: E402
from rmsnorm_lab.errors import UserError  # noqa: E402
from rmsnorm_lab.experiments.checkpoints import Checkpoints  # noqa: E402
from rmsnorm_lab.experiments.learner import Learner  # noqa: E402
from rmsnorm_lab.experiments.recipes.common import TrainConfig  # noqa: E402
from rmsnorm_lab.experiments.run import chosen_by  # noqa: E402
from rmsnorm_lab.experiments.task import Metric  # noqa: E402
from tiny_runs import STEPS, arguments, checkpoints, corpus, result  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread(set_threads):
    set_threads(1)


@pytest.fixture
def text(tmp_path):
    return corpus(tmp_path)


def stopped(text, out, *more, steps=STEPS):
    """Killed without warning once it has written its second checkpoint."""
    process = subprocess.Popen([sys.executable, "-m", "rmsnorm.cli", *arguments(text, out, *more, steps=steps)])
    deadline = time.monotonic() + 60
    while process.poll() is None and len(checkpoints(out)) < 2 and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not list(out.glob("*.jsonl"))


def test_a_killed_run_goes_on_to_the_same_figures_and_a_damaged_checkpoint_is_not_used(text, tmp_path, capsys):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main(arguments(text, whole)) == 0
    stopped(text, out, "--checkpoint-every", "7")  # not where it evaluates
    last = checkpoints(out)[-1]
    last.write_bytes(last.read_bytes()[:-100])
    before = checkpoints(out)[-2]
    capsys.readouterr()
    assert main(arguments(text, out, "--checkpoint-every", "7")) == 0
    errors = capsys.readouterr().err
    assert f"checkpoint {last} is refused and removed: its content does not match the hash in its name" in errors
    step = int(before.name.split(".step")[1][:9])
    assert step % 7 == 0
    assert f"goes on from step {step}" in errors
    assert result(out) == result(whole)
    assert len(checkpoints(out)) == 2


def without(content, key):
    del content[key]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda content: content["model"].update(stranger=torch.zeros(1)), "stranger"),
        (lambda content: without(content["model"], "embedding.weight"), "it lacks 'embedding.weight'"),
        (lambda content: without(content["optimizer"]["state"]["embedding.weight"], "exp_avg"), "lacks a part"),
        (lambda content: without(content["progress"], "first"), "first"),
        (lambda content: without(content, "progress"), "progress"),
        (lambda content: content["progress"].update(done=4 * STEPS), f"it is of step {4 * STEPS} of {STEPS}"),
    ],
)
def test_a_state_of_another_network_is_refused(begun, text, tmp_path, capsys, change, what):
    out = tmp_path / "out"
    shutil.copytree(begun, out)
    folder = Checkpoints(out / "checkpoints", checkpoints(out)[0].name.partition(".")[0], print)
    content = folder.load()
    change(content)
    folder.save(STEPS - 1, content)
    assert main(arguments(text, out)) == 2
    said = capsys.readouterr().err
    assert "must be of this version's network" in said
    assert what in said


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The folder of a killed run."""
    folder = tmp_path_factory.mktemp("begun")
    stopped(corpus(folder), folder / "out")
    return folder / "out"


def test_what_is_refused_does_not_count_among_those_that_are_kept(begun, text, tmp_path, capsys):
    """Both are damaged, so the run begins at 0, and its first checkpoints are of lower steps than theirs."""
    out = tmp_path / "out"
    shutil.copytree(begun, out)
    damaged = checkpoints(out)
    for path in damaged:
        path.rename(path.with_name(path.name.replace(".step000000", ".step000999")))
    for path in checkpoints(out):
        path.write_bytes(path.read_bytes()[:100])
    stem = damaged[0].name.partition(".")[0]
    folder = Checkpoints(out / "checkpoints", stem, print)
    assert folder.load() is None
    assert capsys.readouterr().out.count("is refused and removed") == len(damaged) == 2
    for step in (1, 2, 3):
        folder.save(step, {"step": step})
    assert [path.name.split(".")[1] for path in checkpoints(out)] == ["step000000002", "step000000003"]
    assert folder.load() == {"step": 3}


def test_a_checkpoint_that_cannot_be_read_is_an_error_and_stays(tmp_path):
    """It may be whole: a disk or a network that answers again gives it back."""
    folder = Checkpoints(tmp_path, "run", print)
    folder.save(1, {"step": 1})
    (path,) = tmp_path.iterdir()
    path.rename(tmp_path / "moved")
    path.mkdir()
    with pytest.raises(IsADirectoryError, match=re.escape(str(path))):
        folder.load()
    assert path.exists()


def test_two_are_kept_and_each_is_whole_or_refused(tmp_path):
    said = []
    mine, other = (Checkpoints(tmp_path, stem, said.append) for stem in ("run-a", "run"))
    assert mine.load() is None
    for step in (5, 10, 1000):
        mine.save(step, {"step": step, "weights": torch.full((3,), float(step))})
    other.save(7, {"step": 7})
    assert names(tmp_path) == ["run", "run-a", "run-a"]
    assert mine.load()["step"] == 1000
    assert not said

    latest = next(tmp_path.glob("run-a.step000001000*"))
    content = bytearray(latest.read_bytes())
    content[len(content) // 2] ^= 1  # one bit, which the archive's own reader may not see
    latest.write_bytes(content)
    assert mine.load()["step"] == 10
    assert str(latest) in said[0]
    for path in tmp_path.glob("run-a*"):
        path.write_bytes(b"")
    assert mine.load() is None
    mine.remove()
    assert names(tmp_path) == ["run"]


def names(folder):
    return sorted(path.name.partition(".")[0] for path in folder.iterdir())


def test_a_checkpoint_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("owned",))

    kept = Checkpoints(tmp_path, "run", lambda message: said.append(message))
    said = []
    kept.save(1, {"evil": Evil()})
    assert kept.load() is None
    assert "refused" in said[0]


def test_tensorboard_logs_hold_the_curve(text, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "out"
    assert main(arguments(text, out, "--tensorboard", steps=8)) == 0
    (folder,) = (out / "tensorboard").iterdir()
    log = accumulator.EventAccumulator(str(folder)).Reload()
    _, curve = result(out)
    assert [event.step for event in log.Scalars("train/loss")] == list(range(1, 9))
    valid = [event.value for event in log.Scalars("valid/bits")]
    assert valid == pytest.approx(curve["valid"]["bits"], abs=1e-5)
    assert log.Scalars("train/learning_rate")[0].value > 0


def test_logs_on_a_full_disk_are_one_sentence(text, tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorboard")
    from tensorboard.summary.writer.record_writer import RecordWriter

    write, hook, written = RecordWriter.write, threading.excepthook, []

    def full(writer, data):  # in the thread of the writer
        if len(written) > 4:
            raise OSError(28, "No space left on device")
        written.append(data)
        write(writer, data)

    monkeypatch.setattr(RecordWriter, "write", full)
    assert main(arguments(text, tmp_path / "out", "--tensorboard", steps=40)) == 2
    said = capsys.readouterr().err
    assert re.search(r"tensorboard/language-batch-seed0-\w+ must be writable, and is not: No space left", said)
    assert "Traceback" not in said
    assert threading.excepthook is hook


def test_the_best_weights_are_tested_if_the_recipe_asks_for_them(text, tmp_path, monkeypatch):
    """A network that learns, and loses all that it learnt in the last two steps."""
    step = Learner.step

    def forgetful(learner, batch, rate, beta1):
        loss = step(learner, batch, rate, beta1)
        forgetful.done += 1
        if forgetful.done % 16 in (15, 0):
            for parameter in learner.network().parameters():
                torch.nn.init.zeros_(parameter)
        return loss

    forgetful.done = 0
    monkeypatch.setattr(Learner, "step", forgetful)
    last, best = tmp_path / "last", tmp_path / "best"
    assert main(arguments(text, last, steps=16)) == 0
    assert main(arguments(text, best, "train.best=true", steps=16)) == 0
    figures = [result(out)[1]["valid"]["bits"] for out in (last, best)]
    assert figures[0] == figures[1]
    assert min(figures[0]) < figures[0][-1] - 0.1  # the premise
    assert result(best)[0]["bits"] == pytest.approx(min(figures[0]), abs=0.2)
    assert result(best)[0]["bits"] < result(last)[0]["bits"] - 0.1


def test_the_best_point_is_by_the_figures_that_the_recipe_adds_up(text, tmp_path, monkeypatch):
    """Validation figures that disagree: by bits the second point is best, by the sum of both the third."""
    curve = iter([(5.0, 9.0), (1.0, 9.0), (2.0, 3.0), (4.0, 4.0)])
    evaluate = Learner.evaluate

    def figures(learner, split, weights=None):
        if split == "test":
            assert torch.equal(weights["embedding.weight"], kept[2])
            return evaluate(learner, split, weights)
        kept.append(learner.network().state_dict()["embedding.weight"].clone())
        return dict(zip(("bits", "loss"), next(curve), strict=True))

    kept = []
    monkeypatch.setattr(Learner, "evaluate", figures)
    best = ["train.best=true", "train.best_by=bits+loss", "train.evaluations=3"]
    assert main(arguments(text, tmp_path / "sum", *best, steps=6)) == 0
    assert len(kept) == 4


@pytest.mark.parametrize(
    ("by", "said"),
    [
        ("bit", r"must be headline, or one or more of bits, .*loss joined by \+; got 'bit'\. Did you mean 'bits'"),
        ("bits+", "got ''"),
    ],
)
def test_figures_that_no_point_has_are_refused(by, said):
    metrics = (Metric("bits", "bits", False, ".3f"), Metric("accuracy", "accuracy", True, ".1f"))
    config = TrainConfig(steps=1, batch=1, learning_rate=1.0, best=True, best_by=by)
    with pytest.raises(UserError, match=said):
        chosen_by(config, metrics)


def test_figures_of_both_directions_are_not_added_up():
    metrics = (Metric("bits", "bits", False, ".3f"), Metric("accuracy", "accuracy", True, ".1f"))
    config = TrainConfig(steps=1, batch=1, learning_rate=1.0, best=True, best_by="bits+accuracy")
    with pytest.raises(UserError, match="more is better, or less; got bits"):
        chosen_by(config, metrics)
