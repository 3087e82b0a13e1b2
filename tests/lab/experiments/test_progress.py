"""Signs of life: what is told of work that goes on, how long the rest will take, and what an interruption leaves."""

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
for _package in ("lightning_fabric", "rich", "matplotlib"):
    pytest.importorskip(_package)

from rich.console import Console  # noqa: E402

from rmsnorm.cli import main  # noqa: E402
from rmsnorm_lab.experiments import interrupts, p_sweep, tasks  # noqa: E402
from rmsnorm_lab.experiments.arguments import recipe_of  # noqa: E402
from rmsnorm_lab.experiments.jobs import timings, training  # noqa: E402
from rmsnorm_lab.experiments.learner import Learner, Setup  # noqa: E402
from rmsnorm_lab.experiments.pace import Pace  # noqa: E402
from rmsnorm_lab.experiments.progress import ProgressReport, duration  # noqa: E402
from tiny_runs import TINY, arguments, checkpoints, corpus, language, result  # noqa: E402  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread(set_threads):
    set_threads(1)


@pytest.fixture
def text(tmp_path):
    return corpus(tmp_path)


@pytest.fixture
def jobs(text):
    """Runs of 100 steps, and timings of 2 · (5 + 60 + 5) steps."""
    recipe = tasks.recipe("language")
    task = tasks.load("language", text, replace(recipe, train=replace(recipe.train, steps=100)))
    runs = [training(task, Setup(), norm, 0) for norm in ("layer", "rms")]
    return [*runs, *timings(task, Setup(), ["layer", "rms"])]


def test_what_is_left_is_weighed_by_measured_steps(jobs):
    now = 0.0
    pace = Pace(jobs[:3], lambda: now)
    assert pace.left() is None
    pace.begin(jobs[0])
    assert pace.left() is None
    now = 10.0
    pace.advance(20)  # a checkpoint held 19
    assert pace.left() == pytest.approx(10 * (80 + 100 + 140))
    now = 20.0
    pace.advance(100)
    pace.end()  # 81 steps in 20 s
    assert pace.left() == pytest.approx(20 / 81 * (100 + 140))
    pace.begin(jobs[1])
    now = 21.0
    pace.advance(1)
    assert pace.left() == pytest.approx(1.0 * 99 + (21 / 82) * 140)  # its own speed, and all together for what is new


def test_durations():
    assert [duration(s) for s in (7.4, 754, 11100, 270305)] == ["0:07", "12:34", "3:05:00", "3 d 3:05:05"]


def written(jobs, **options):
    console = Console(file=io.StringIO(), width=300)
    return ProgressReport(console, len(jobs), **options), console.file


def test_where_there_is_no_terminal_lines_come_in_time_even_within_a_step(jobs):
    progress, file = written(jobs, every=0.2)
    with progress:
        progress.plan(jobs)
        progress.begin(jobs[1])
        progress.advance(41, loss=2.5)
        progress.doing("evaluating (valid)")
        deadline = time.monotonic() + 20
        while file.getvalue().count("\n") < 2 and time.monotonic() < deadline:  # nothing is told in this time
            time.sleep(0.01)
    first = file.getvalue().splitlines()[0]
    assert first.startswith("  1 of 5  RMSNorm, seed 0: step 41 of 100 · ")
    assert " steps/s · " in first
    assert first.endswith(" left · evaluating (valid) · loss 2.500")
    lines = file.getvalue()
    time.sleep(0.4)
    assert file.getvalue() == lines  # it is over


def test_short_runs_are_told_in_their_last_line_alone_and_one_run_at_each_evaluation(jobs):
    for options, lines in (({}, 0), ({"evaluations": True}, 1)):
        progress, file = written(jobs[:1], **options)
        with progress:
            progress.plan(jobs[:1])
            progress.begin(jobs[0])
            progress.advance(50, loss=1.0)
            progress.evaluated({"bits": 2.3456, "loss": 1.6})
        assert file.getvalue().count("validation: bits 2.346, loss 1.600") == lines


def test_quality_is_there_before_anything_is_timed_and_only_what_was_asked_for_is(text, tmp_path, capsys, monkeypatch):
    from rmsnorm_lab.experiments import step_times

    out, norms = tmp_path / "out", []

    def measure(task, setup, asked, on_round):
        norms.append(asked)
        printed.append(capsys.readouterr().out)
        raise KeyboardInterrupt

    printed = []
    monkeypatch.setattr(step_times, "measure", measure)
    assert main(language(out, "--norm", "rms", "layer")) == 130
    assert norms == [["layer", "rms"]]
    assert "held-out bits" in printed[0]
    assert (out / "language.png").exists()
    monkeypatch.undo()
    assert main(language(out, "--norm", "rms", "layer")) == 0
    rest = capsys.readouterr().out
    assert "ms per" in rest
    timed = [json.loads(path.read_text()) for path in out.glob("*-timing-*")]
    assert all(set(record["result"]["peak_memory"]) == {"layer", "rms"} for record in timed)


@pytest.mark.parametrize(
    ("rounds", "settings", "warm_up"), [(2, [], 2), (9, [], 5), (2, ["timing.warmup_rounds=4"], 4)]
)
def test_few_rounds_are_not_waited_for_longer_than_they_take(rounds, settings, warm_up):
    args = argparse.Namespace(size="small", set=settings, steps=None, timing_rounds=rounds, source=None, target=None)
    timing = recipe_of(args, "language", ["rms"], times=True).timing
    assert (timing.rounds, timing.warmup_rounds) == (rounds, warm_up)


def test_a_table_of_times_without_layernorm_says_so(text, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(language(out, "--norm", "rms", "prms", seeds=1)) == 0
    assert "LayerNorm was not timed" in capsys.readouterr().out
    assert main(["report", str(out), "--out", str(tmp_path / "page.html")]) == 0


def test_a_sweep_of_p_has_one_copy_of_the_data(text, monkeypatch, tmp_path):
    loaded = []
    load = tasks.load
    monkeypatch.setattr(tasks, "load", lambda *args: loaded.append(load(*args)) or loaded[-1])
    assert main(language(tmp_path / "out", "--sweep-p", "0.25", "0.5", "1", seeds=1)) == 0
    assert len(loaded) == 1
    other = p_sweep.with_p(loaded[0], 0.3)
    assert other.text is loaded[0].text
    assert (other.recipe.p, loaded[0].recipe.p) == (0.3, 0.0625)
    assert other.model("prms", "rmsnorm").norm.p == 0.3


def signalled(monkeypatch, at, number):
    """The signal comes within a step."""
    step = Learner.step

    def interrupted(learner, *args):
        interrupted.done += 1
        if interrupted.done == at:
            signal.raise_signal(number)
        return step(learner, *args)

    interrupted.done = 0
    monkeypatch.setattr(Learner, "step", interrupted)


def test_what_is_interrupted_before_a_step_has_kept_nothing(text, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Learner, "step", interrupted)
    assert main(arguments(text, tmp_path / "out", steps=24)) == 130
    said = capsys.readouterr().err
    assert "nothing was trained yet; the same command starts again" in said
    assert "kept in" not in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_of_the_step_in_which_it_came(text, tmp_path, monkeypatch, capsys, number):
    whole, out = tmp_path / "whole", tmp_path / "out"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may have been started to ignore it
    try:
        assert main(arguments(text, whole, steps=24)) == 0
        signalled(monkeypatch, 8, number)
        assert main(arguments(text, out, steps=24)) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "interrupted: the steps taken are kept in" in capsys.readouterr().err
    assert "step000000008" in checkpoints(out)[-1].name  # evaluations are at 6, 9, …
    assert main(arguments(text, out, steps=24)) == 0
    assert "goes on from step 8" in capsys.readouterr().err
    assert result(out) == result(whole)


def test_an_interrupted_evaluation_leaves_a_checkpoint_too(text, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main(arguments(text, whole, "--checkpoint-every", "100", steps=24)) == 0
    evaluate = Learner.evaluate

    def interrupted(learner, split, weights=None):
        interrupted.done += 1
        if interrupted.done == 3:
            raise KeyboardInterrupt
        return evaluate(learner, split, weights)

    interrupted.done = 0
    monkeypatch.setattr(Learner, "evaluate", interrupted)
    command = arguments(text, out, "--checkpoint-every", "100", steps=24)
    assert main(command) == 130
    assert "step000000006" in checkpoints(out)[-1].name
    assert main(command) == 0
    assert result(out) == result(whole)
    assert "step000000024" in checkpoints(out)[-1].name  # the trained network, whatever N is


def _signalled(done):
    with interrupts.held():
        signal.raise_signal(signal.SIGTERM)
        done.append(interrupts.pending())
    done.append("outer")


def _signalled_and_failed():
    signal.raise_signal(signal.SIGTERM)
    raise OSError("disk")


def test_what_is_held_is_finished_first_and_other_errors_come_first():
    done = []
    with interrupts.watched():
        with pytest.raises(KeyboardInterrupt), interrupts.held():
            _signalled(done)
        assert not interrupts.pending()
        with pytest.raises(OSError, match="disk"), interrupts.held():
            _signalled_and_failed()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert done == [True, "outer"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_two_processes_stop_together_and_leave_one_checkpoint(text, tmp_path):
    command = arguments(text, tmp_path / "out", "train.evaluations=4000", "--checkpoint-every", "1000000", steps=20000)
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "rmsnorm.cli"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*run, *command], env=environment, stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(120, process.kill)  # seconds: ten times what it needs
    watchdog.start()
    for line in process.stderr:
        if "step 10 of 20,000" in line:
            break
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    watchdog.cancel()
    assert errors.count("interrupted: the steps taken are kept in") == 1, errors
    (kept,) = checkpoints(tmp_path / "out")
    assert int(kept.name.split(".step")[1][:9]) >= 10


def test_a_diverged_run_is_a_failure_of_train_and_a_finding_of_compare(text, tmp_path):
    same = ["--data", str(text), "--out", str(tmp_path / "out"), "--steps", "6", "--norm", "none"]
    same += ["--set", *TINY, "train.learning_rate=1e30"]
    assert main(["train", "language", *same]) == 1
    assert main(["train", "language", *same]) == 1  # recorded already
    assert main(["compare", "language", *same, "--seeds", "1", "--timing-rounds", "0"]) == 0
