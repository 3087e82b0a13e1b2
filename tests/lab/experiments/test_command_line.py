"""The command lines of train and compare: what they take, and what they refuse before anything runs."""

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
for _package in ("lightning_fabric", "rich", "matplotlib"):
    pytest.importorskip(_package)

from rmsnorm.cli import main  # noqa: E402
from rmsnorm_lab.experiments import norms  # noqa: E402
from tiny_runs import corpus  # noqa: E402


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


MISSING = {
    "sacrebleu": ["compare", "language", "translation"],
    "tokenizers": ["train", "transformer", "--norm", "rms"],
    "tensorboard": ["train", "language", "--norm", "rms", "--tensorboard"],
}


def test_a_package_that_is_missing_is_said_before_anything_is_loaded(tmp_path, run_python):
    """In processes that are forked after what takes seconds to import."""
    out = tmp_path / "runs"
    said = run_python(
        f"""
import os, sys
import lightning_fabric, matplotlib, torch
from rmsnorm.cli import main
for package, words in {MISSING}.items():
    if not (child := os.fork()):
        sys.modules[package] = None
        os._exit(main([*words, "--out", {str(out)!r}]))
    os.waitpid(child, 0)
sys.exit(3)  # what is returned is then stderr
""",
        status=3,
    )
    assert [line.partition(" Run: ")[0] for line in said.splitlines()] == [
        f"rmsnorm {words[0]}: this command needs the experiments' packages; {package!r} is not installed."
        for package, words in MISSING.items()
    ]
    assert not out.exists()


def test_configuring_the_command_line_imports_nothing_heavy():
    code = (
        "import argparse, sys; from rmsnorm_lab.experiments.compare_command import configure; "
        "configure(argparse.ArgumentParser()); "
        "print(sorted({'torch', 'numpy', 'rich', 'matplotlib', 'lightning_fabric'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
