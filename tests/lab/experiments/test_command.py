"""``rmsnorm compare language`` as its users meet it: output, resuming, interruption, damaged records, errors."""

import contextlib
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
for _package in ("lightning_fabric", "rich", "matplotlib"):
    pytest.importorskip(_package)


from rich.console import Console  # noqa: E402

from made_records import MACHINE, run_record, timing_record  # noqa: E402
from rmsnorm.cli import main  # noqa: E402
from rmsnorm_lab.experiments import norms, store  # noqa: E402
from rmsnorm_lab.experiments.comparison import _time_table, quality_cell  # noqa: E402
from rmsnorm_lab.experiments.paper import Published  # noqa: E402
from rmsnorm_lab.experiments.record import SCHEMA  # noqa: E402
from rmsnorm_lab.experiments.summary import mixed_machines, quality_row, time_row  # noqa: E402
from rmsnorm_lab.experiments.tasks.language import Language  # noqa: E402
from rmsnorm_lab.table import Cell  # noqa: E402
from tiny_runs import corpus, language  # noqa: E402

RUNS = 8  # four normalisers × two seeds
ALL = RUNS + 3  # and three timings


@pytest.fixture(scope="module", autouse=True)
def _on_one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of one finished comparison; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("finished")
    corpus(folder)
    assert main(language(folder / "runs")) == 0
    return folder


@pytest.fixture
def out(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path / "runs"


def test_a_comparison_leaves_records_of_one_json_line_and_a_png(out, tmp_path):
    records = [json.loads(line) for text in contents(out).values() for line in text.splitlines()]
    assert len(records) == len(contents(out)) == ALL
    trained = [record for record in records if record["kind"] == "run"]
    assert {(r["identity"]["norm"], r["identity"]["seed"]) for r in trained} == {
        (norm, seed) for norm in norms.by_default("language") for seed in (0, 1)
    }
    for record in trained:
        assert record["schema"] == SCHEMA
        assert record["identity"]["train"]["steps"] == 2
        assert record["source_name"] == "words.txt"
        assert record["result"]["curve"]["step"] == [0, 1, 2]
        assert record["machine"]["cpu"]
        assert record["machine"]["torch_threads"] == 1
        assert record["machine"]["versions"]["torch"] == torch.__version__
    everything = b"".join(contents(out).values())
    assert str(tmp_path).encode() not in everything
    assert (out / "language.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert (out / "language.png").stat().st_size > 10_000
    assert [path.name for path in out.glob(".*")] == [".lock"]
    assert not list((out / "checkpoints").iterdir())  # what is recorded needs none


def test_what_is_recorded_is_not_run_again_and_the_table_is_the_same(out, capsys):
    before = contents(out)
    assert main(language(out)) == 0
    first = capsys.readouterr()
    assert f"{ALL} of {ALL} were recorded" in first.err
    assert contents(out) == before
    for norm in norms.by_default("language"):
        assert f"\n{norms.label(norm)} " in first.out
    assert "stand-in" not in first.out
    assert main(language(out)) == 0
    assert capsys.readouterr().out == first.out


def test_one_more_seed_runs_that_seed_only(out, capsys):
    before = contents(out)
    assert main(language(out, "--norm", "rms,layer", seeds=3)) == 0
    captured = capsys.readouterr()
    after = contents(out)
    assert {name: after[name] for name in before} == before
    assert sorted(name.rsplit("-", 1)[0] for name in after.keys() - before.keys()) == [
        "language-layer-seed2",
        "language-rms-seed2",
        *["language-timing"] * 3,  # of these two alone
    ]
    assert "\nRMSNorm " in captured.out
    assert "\nno norm " not in captured.out


def test_other_settings_are_other_runs(out, capsys):
    before = contents(out)
    assert main(language(out, "--norm", "prms", "--kernels", "unfused", seeds=1)) == 0
    captured = capsys.readouterr()
    assert "\npRMSNorm " in captured.out
    assert "trained with the unfused kernels" in captured.out
    untimed = "--timing-rounds", "0"
    assert main(language(out, *untimed, "--norm", "rms", "--set", "model.qk_norm=true", seeds=1)) == 0
    assert main(language(out, *untimed, "--norm", "rms", steps=3, seeds=1)) == 0
    assert len(contents(out)) == len(before) + 3 + 3  # each a run; of the first its timing in three settings


def test_without_timing_there_is_no_table_of_times(out, capsys):
    for path in out.glob("*-timing-*"):
        path.unlink()
    assert main(language(out, "--timing-rounds", "0")) == 0
    captured = capsys.readouterr()
    assert f"{RUNS} of {RUNS} were recorded" in captured.err
    assert "held-out bits" in captured.out
    assert "ms per" not in captured.out
    assert not list(out.glob("*-timing-*"))


def test_a_sweep_shows_every_normaliser_at_every_rate(out, capsys):
    rates = ["0.004", "1e30"]
    assert main(language(out, "--norm", "layer", "rms", "--sweep-lr", *rates, seeds=1)) == 0
    captured = capsys.readouterr()
    assert "2 of 4 were recorded" in captured.err  # the recipe's own rate
    for label in ("LayerNorm", "RMSNorm"):
        line = next(line for line in captured.out.splitlines() if line.startswith(label))
        assert re.fullmatch(rf"{label} +\d\.\d{{3}} \* +diverged *", line)
    assert "per character, validation · words.txt" in captured.out
    assert "at an end of the rates tried: LayerNorm, RMSNorm; a rate beyond it may be better" in captured.out


def test_overwrite_does_all_again_and_comes_to_the_same_quality(out):
    before = contents(out)
    name = next(name for name in before if "rms-seed0" in name)
    (out / name).write_text('{"torn')  # what is replaced need not be whole
    assert main(language(out, "--overwrite", seeds=1)) == 0
    after = contents(out)
    assert after.keys() == before.keys()
    for name in before:
        if "seed1" in name:
            assert after[name] == before[name]
            continue
        old, new = (json.loads(content[name])["result"] for content in (before, after))
        assert new.get("quality") == old.get("quality")
        if "milliseconds" in old:
            assert new != old  # measured again


def test_json_output(out, capsys):
    assert main(language(out, "--json")) == 0
    table = json.loads(capsys.readouterr().out)
    assert [each["norm"] for each in table["quality"]] == list(norms.by_default("language"))
    assert all(each["metrics"]["bits"]["sd"] is not None for each in table["quality"])
    assert list(table["time"]) == ["unfused", "rmsnorm", "best"]
    for rows in table["time"].values():
        assert rows[0]["norm_share"] is None
        assert rows[1]["saved"] is None
        assert rows[2]["profiled_share"] > 0


def test_a_damaged_record_stops_the_command(out, capsys):
    path = next(path for path in out.glob("*.jsonl") if "layer-seed1" in path.name)
    path.write_bytes(path.read_bytes()[:100])
    assert main(language(out)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"{path}, line 1" in captured.err
    assert "Traceback" not in captured.err


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


TIMES = {"none": [8.0, 16.0], "layer": [10.0, 20.0], "rms": [9.0, 18.0], "prms": [8.5, 17.0]}


@pytest.mark.parametrize(
    ("bits", "cell"),
    [
        ([2.0, 3.0], "2.500 ± 0.707"),
        ([2.0], "2.000"),
        ([None], "diverged"),
        ([None, None], "diverged (2 of 2)"),
        ([2.0, 3.0, None], ("2.500 ± 0.707", "1 of 3 diverged")),
    ],
)
def test_divergence_is_said_as_such(bits, cell):
    text, *below = (cell,) if isinstance(cell, str) else cell
    row = quality_row("rms", [run_record(quality=each) for each in bits])
    assert quality_cell(row, Language.metrics[0]) == Cell(text, tuple(below))


def test_a_table_of_times_promises_an_interval_only_where_there_is_one(capsys):
    for rounds, promised in ((5, False), (6, True)):
        record = timing_record({norm: [*map(float, range(10, 10 + rounds))] for norm in ("layer", "rms")})
        _time_table("times", [time_row(norm, record) for norm in ("layer", "rms")], Published("")).show(Console())
        shown = capsys.readouterr().out
        assert ("[95 % CI]" in shown) == promised
        assert ("0.0 [0.0, 0.0]" in shown) == promised


def test_a_row_pairs_the_times():
    record = timing_record(TIMES)
    rows = {norm: time_row(norm, record) for norm in TIMES}
    assert rows["rms"].saved.median == pytest.approx(0.1)
    assert rows["rms"].norm_share.median == pytest.approx(1 / 9)
    assert rows["rms"].milliseconds == pytest.approx(13.5)  # LayerNorm's median, 15, less a tenth
    assert rows["layer"].milliseconds == 15
    assert rows["layer"].saved is None
    assert rows["none"].norm_share is None


def test_records_of_different_versions_are_pointed_out():
    older = replace(MACHINE, versions={**MACHINE.versions, "torch": "2.12.0"})
    assert mixed_machines([run_record(), run_record()]) == []
    assert mixed_machines([run_record(), run_record(machine=older)]) == ["torch 2.12.0, 2.13.0"]


def test_a_diverged_run_is_recorded_drawn_and_printed(out, capsys):
    """An absurd learning rate, through the whole command."""
    assert main(language(out, "--norm", "none", "--set", "train.learning_rate=1e30", steps=6)) == 0
    captured = capsys.readouterr()
    assert "diverged (2 of 2)" in captured.out
    assert "diverged at step" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--norm", "rms", "weight"], "prms, dyt for language; got 'weight'"),
        (["--norm", ","], "prms, dyt for language; got none"),
        (["--set", "model.widht=3"], "of language's recipe; got 'model.widht'. Did you mean 'model.width'?"),
        (["--set", "learning_rate=3"], "got 'learning_rate'. Did you mean 'train.learning_rate'?"),
        (["--set", "train.lr=3"], "got 'train.lr'. Did you mean 'train.learning_rate'?"),
        (["--set", "x=3"], "These are all, with their values:\n  model.width=128 model.layers=3 "),
        (["--set", "x"], " train.betas=0.9,0.95"),
        (["--set", "train.batch"], "--set must be NAME=VALUE"),
        (
            ["--set", "train.batch=many"],
            "train.batch must be a whole number; got 'many'. An example is the recipe's value: train.batch=16",
        ),
        (["--set", "train.batch=2.5"], "train.batch must be a whole number"),
        (["--set", "train.batch="], "must be NAME=VALUE; got 'train.batch='. An example: train.batch=16."),
        (["--set", "model.qk_norm=1"], "model.qk_norm must be true or false; got '1'"),
        (["--set", "train.betas=[0.9]"], "train.betas must be 2 numbers; got '[0.9]'"),
        (["--set", "train.late_beta1=soon"], "train.late_beta1 must be a number or null; got 'soon'"),
        (["--set", "p=2"], "p must be above 0 and at most 1; got 2"),
        (["--set", "p=0"], "p must be above 0 and at most 1; got 0"),
        (["--set", "train.batch=0"], "train.batch must be at least 1; got 0"),
        (["--set", "train.evaluations=0"], "train.evaluations must be at least 1; got 0"),
        (["--set", "train.learning_rate=-1"], "train.learning_rate must be above 0; got -1"),
        (["--set", "train.learning_rate=nan"], "train.learning_rate must be finite; got nan"),
        (["--set", "train.batch=100000000000"], "train.batch must be at most 2147483647; got 100000000000"),
        (["--set", "train.learning_rate=Infinity"], "train.learning_rate must be finite; got inf"),
        (["--set", "model.width=7"], "model.width must be an even multiple of model.heads; got"),
        (["--set", "train.betas=[0.9, 1.0]"], "train.betas must be at least 0 and below 1; got 1"),
        (["--set", "model.layers=0"], "model.layers must be at least 1; got 0"),
        (["--set", "train.clip=hard"], "train.clip must be one of none, global, per_tensor; got 'hard'"),
        (["--set", "train.clip=glob"], "got 'glob'. Did you mean 'global'?"),
        (["--set", "train.batch=3", "train.batch=4"], "train.batch must be set once; got 3 and 4"),
        (["--steps", "2", "--set", "train.steps=3"], "train.steps must be set once; got 3 and 2"),
        (["--timing-rounds", "2", "--set", "timing.rounds=3"], "--timing-rounds N is --set timing.rounds=N"),
        (["--steps", "9", "--set", "train.warmup_steps=10"], "train.warmup_steps must be at most the run's 9 steps"),
        (["--set", "train.clip=none", "train.clip_norm=2"], "train.clip_norm has no effect where train.clip is none"),
        (["--set", "train.schedule=constant", "train.final_share=0"], "no effect where train.schedule is constant"),
        (["--norm", "rms", "--set", "p=0.5"], "p is of pRMSNorm alone; got --norm rms"),
        (["--sweep-lr", "0.1", "--set", "train.learning_rate=1"], "--sweep-lr sets train.learning_rate; got --set"),
        (["--sweep-p", "0.1", "--set", "p=0.2"], "--sweep-p sets p; got --set p=... too"),
        (["--sweep-p", "0.1", "--sweep-lr", "0.2"], "the only sweep; got --sweep-lr too"),
        (["--sweep-p", "0.1", "--timing-rounds", "3"], "--sweep-p times nothing; got --timing-rounds 3"),
        (["--sweep-p", "0.1", "--set", "timing.rounds=3"], "this command times nothing, so timing has no effect; got"),
        (["--timing-rounds", "0", "--set", "timing.rounds=3"], "no effect; got --set timing.rounds=3. Leave it out."),
        (["--sweep-lr", "0.1", "abc"], "--sweep-lr must be numbers; got 'abc'. Pass numbers, such as 0.001."),
        (["--sweep-p", "½"], "--sweep-p must be numbers; got '½'"),
        (["--seeds", "10001"], "--seeds must be at most 10000; got 10001"),
        (["--seeds", "0"], "--seeds must be at least 1; got 0"),
        (["--steps", "-3"], "--steps must be at least 1; got -3"),
        (["--timing-rounds", "-1"], "--timing-rounds must be at least 0; got -1"),
        (["--sweep-lr", "0.1", "0"], "--sweep-lr must be learning rates above 0; got 0"),
        (["--sweep-lr", "0.1", "nan"], "--sweep-lr must be learning rates above 0; got nan"),
        (["images"], "--data must be given for one task; got 2 tasks"),
        (["--threads", "0"], "--threads must be at least 1; got 0"),
        (["--threads", "99999"], "--threads must be at most 1024; got 99999"),
        (["--device", "abacus"], "--device must be one that this torch can use; got 'abacus'"),
        (["--device", "cuda:99"], "--device must be one that this torch can use; got 'cuda:99'"),
        (["--device", "cpu:0"], "got 'cpu:0': CPUs have no numbers"),
        (["--device", "meta"], "--device must be one that this torch can use; got 'meta'"),
        (["--data", "nowhere.txt"], "'nowhere.txt' is neither"),
        (["--out", "words.txt"], "--out must be a folder that can be written and locked; 'words.txt' is a file. Pass"),
    ],
)
def test_wrong_use_is_refused_before_anything_runs(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    corpus(tmp_path)
    assert main(["compare", "--data", "words.txt", "language", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["translation", "transformer", "--norm", "weight"], "none, layer, rms, prms for transformer; got 'weight'"),
        (["all", "--norm", "weight"], "none, layer, rms, prms for transformer; got 'weight'"),
        (["language", "images", "--set", "train.batch=5000"], "a step takes 5000 images"),
        (["language", "--norm", "rmsnorm"], "got 'rmsnorm'. Did you mean 'rms'?"),
        (["language", "--norm", "LayerNorm"], "got 'LayerNorm'. Did you mean 'layer'?"),
        (["langauge"], "got 'langauge'. Did you mean 'language'?"),
    ],
)
def test_what_one_of_several_tasks_refuses_is_said_before_any_is_trained(tmp_path, capsys, arguments, message):
    """The small settings of the other tasks would take minutes: the message comes first."""
    assert main(["compare", *arguments, "--steps", "1", "--seeds", "1", "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.parametrize(
    ("norm", "message"),
    [
        ("weight", "--norm must name some of none, l2, batch, group, layer, rms, prms, dyt for language; got 'weight'"),
        ("rms,layer", "--norm must be one normaliser; got rms,layer"),
    ],
)
def test_train_refuses_a_normaliser_that_the_task_has_not(tmp_path, capsys, norm, message):
    assert main(["train", "language", "--norm", norm, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--norm", "rms", "layer", "language", "--steps", "1"],
        ["--steps", "1", "--norm", "layer", "--norm", "rms", "language"],
        ["language", "--norm", "rms", "layer", "language", "--steps", "1"],
        ["--norm", "rms,layer", "--set", "train.steps=1", "language"],
        ["--norm", "rms", "layer", "--steps", "1", "--sweep-lr", "0.1", "language"],
        ["--steps", "1", "--sweep-p", "language"],
        ["--steps", "1", "--sweep-p", "0.5", "language"],
    ],
)
def test_a_task_may_stand_after_an_option_with_several_values(monkeypatch, words):
    called = []
    monkeypatch.setattr("rmsnorm_lab.experiments.comparing.compare", lambda *given: called.append(given) or 0)
    assert main(["compare", *words]) == 0
    ((args, recipes, chosen),) = called
    assert [recipe.train.steps for recipe in recipes.values()] == [1]
    assert chosen == {"language": list(norms.by_default("language")) if "--sweep-p" in words else ["layer", "rms"]}
    assert args.sweep_lr == ([0.1] if "--sweep-lr" in words else None)
    assert args.sweep_p == (([0.5] if "0.5" in words else []) if "--sweep-p" in words else None)


def test_a_wrong_command_is_answered_with_the_nearest(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["comprae", "language"])
    assert ended.value.code == 2
    assert "bench; got 'comprae'. Did you mean 'compare'?" in capsys.readouterr().err


def test_the_task_of_train_may_stand_after_its_settings(monkeypatch):
    called = []
    monkeypatch.setattr("rmsnorm_lab.experiments.training.train", lambda *given: called.append(given) or 0)
    assert main(["train", "--norm", "rms", "--set", "train.steps=1", "language"]) == 0
    ((args, recipe, norm),) = called
    assert (args.task, recipe.train.steps, norm) == ("language", 1, "rms")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare", "--norm", "rms", "layer"], "language, all; got none. Pass one of these."),
        (["compare", "--norm", "rms", "langauge"], "got none. Did you mean 'language'?"),
        (["compare", "language", "--sweep-p", "half"], "--sweep-p must be numbers; got 'half'. Pass numbers"),
        (["train", "language", "--norm", "rms", "--set", "timing.seed=1"], "no effect; got --set timing.seed=1."),
        (["train", "--norm", "rms"], "language; got none"),
        (["train", "language", "--norm", "rms", "--set", "images"], "TASK must be one task; got language and images"),
        (["train", "language", "--norm", "rms", "--strategy", "fsdp"], "--strategy fsdp needs several processes"),
        (["train", "language", "--norm", "rms", "--seed", str(2**63)], "--seed must be at most"),
    ],
)
def test_wrong_tasks_and_flags_are_said(tmp_path, capsys, words, message):
    assert main([*words, "--out", str(tmp_path / "runs")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["train", "language", "--norm", "rms", "--lr", "0.1"],
            "unrecognized arguments: --lr 0.1. Every setting of a task",
        ),
        (["compare", "language", "--seed", "5"], "unrecognized arguments: --seed 5. Did you mean '--seeds'?"),
        (["bench", "--thread", "2"], "unrecognized arguments: --thread 2. Did you mean '--threads'?"),
    ],
)
def test_an_unknown_flag_is_answered_by_its_command(capsys, words, message):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.startswith(f"usage: rmsnorm {words[0]} ")


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("sacrebleu", ["compare", "language", "translation"]),
        ("tokenizers", ["train", "transformer", "--norm", "rms"]),
        ("tensorboard", ["train", "language", "--norm", "rms", "--tensorboard"]),
    ],
)
def test_a_package_that_is_missing_is_said_before_anything_is_loaded(tmp_path, run_python, package, words):
    code = (
        f"import sys; sys.modules[{package!r}] = None; from rmsnorm.cli import main; "
        f"print(main([*{words!r}, '--out', {str(tmp_path / 'runs')!r}]))"
    )
    assert run_python(code + "; sys.stderr.write('done'); sys.exit(3)", status=3).startswith(
        f"rmsnorm {words[0]}: this command needs the experiments' packages; {package!r} is not installed."
    )
    assert not (tmp_path / "runs").exists()


def test_configuring_the_command_line_imports_nothing_heavy():
    code = (
        "import argparse, sys; from rmsnorm_lab.experiments.compare_command import configure; "
        "configure(argparse.ArgumentParser()); "
        "print(sorted({'torch', 'numpy', 'rich', 'matplotlib', 'lightning_fabric'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
