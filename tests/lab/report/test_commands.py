"""The command lines that the report prints make the records that it shows: each is parsed as the program would."""

import itertools
import re
import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
for _package in ("lightning_fabric", "rich", "matplotlib", "jinja2"):
    pytest.importorskip(_package)

from made_records import run_record, timing_record  # noqa: E402
from rmsnorm.cli import main  # noqa: E402
from rmsnorm_lab.experiments import arguments, store, tasks  # noqa: E402
from rmsnorm_lab.experiments.demo import ROWS  # noqa: E402
from rmsnorm_lab.experiments.recipes import translation  # noqa: E402
from rmsnorm_lab.experiments.recipes.settings import changed  # noqa: E402
from rmsnorm_lab.experiments.record import Content  # noqa: E402
from rmsnorm_lab.plain import to_plain  # noqa: E402
from rmsnorm_lab.report import commands  # noqa: E402
from rmsnorm_lab.report.collect import collect  # noqa: E402
from rmsnorm_lab.report.experiment_tables import rates_table  # noqa: E402

RECORDED = Path(__file__).parents[3] / "benchmarks" / "experiments"


@pytest.fixture
def parsed(monkeypatch):
    """A command line -> its arguments, the recipe and the norms, as the program has them before it starts."""

    def parse(line):
        program, *words = shlex.split(line)
        assert program == "rmsnorm"
        calls = []
        stub = SimpleNamespace(**dict.fromkeys(("compare", "train"), lambda *given: calls.append(given) or 0))
        monkeypatch.setattr(arguments, "imported", lambda *modules: stub)
        assert main(words) == 0
        ((args, recipes, norms),) = calls
        if words[0] == "train":
            return args, recipes, [norms]
        ((task, recipe),) = recipes.items()
        return args, recipe, norms[task]

    return parse


def check(experiment, recipe):
    assert to_plain(recipe.model) == experiment.setting.model
    assert to_plain(recipe.data) == experiment.setting.data
    if experiment.train is not None:  # of times alone there is none
        assert replace(recipe.train, learning_rate=1.0) == experiment.train


def each(command):
    """The command lines that one with a comment is short for."""
    if match := re.fullmatch(r"(.*)  # for each NORM of (.*) and each SEED of (.*)", command):
        line, norms, seeds = match.groups()
        return [line.replace("NORM", norm).replace("SEED", seeds) for norm in norms.split(", ")]
    return [command]


def check_runs(parsed, experiment, kernels):
    missing = Counter(line.norm for line in experiment.main(kernels))
    for command in itertools.chain.from_iterable(map(each, commands.of_runs(experiment, kernels))):
        args, recipe, norms = parsed(command)
        seeds = {args.seed} if command.startswith("rmsnorm train") else set(range(args.seeds))
        check(experiment, recipe)
        assert (args.kernels, args.device, args.size) == (kernels, experiment.setting.device, experiment.setting.size)
        missing.subtract(norms)
        for line in experiment.main(kernels):
            if line.norm in norms:
                assert recipe.learning_rate(line.norm) == line.learning_rate
                assert line.p in (None, recipe.p)
                assert {run.identity.seed for run in line.records} <= seeds
    assert set(missing.values()) == {0}  # each norm by one command


@pytest.mark.skipif(not RECORDED.is_dir(), reason="the recorded experiments are not in a source distribution")
def test_the_commands_of_the_recorded_experiments(parsed):
    for folder in sorted(RECORDED.iterdir()):
        for experiment in collect(store.load(folder)):
            for kernels in experiment.lines:
                check_runs(parsed, experiment, kernels)
                if found := rates_table(experiment, kernels):
                    _, lines = found
                    (command,) = commands.of_rates(experiment, kernels, lines)
                    args, recipe, norms = parsed(command)
                    check(experiment, recipe)
                    assert {line.norm for line in lines} == set(norms)
                    assert args.seeds == (1 if experiment.task == "language" else 3)
                    assert {line.learning_rate for line in lines} == set(args.sweep_lr)
            for timing in experiment.timings.values():
                (command,) = commands.of_times(experiment, timing)
                if command.startswith("rmsnorm demo"):  # it has no settings on its command line
                    recipe, norms = translation.demo(), ROWS
                else:
                    _, recipe, norms = parsed(command)
                check(experiment, recipe)
                assert (tuple(norms), recipe.timing) == (timing.identity.norms, timing.identity.timing)


CHANGES = ["model.width=64", "model.qk_norm=true", "train.betas=0.8,0.95", "train.late_beta1=0.5", "train.steps=9"]


def of_recipe(recipe):
    return {"model": to_plain(recipe.model), "data": to_plain(recipe.data), "train": recipe.train}


def test_settings_data_rates_p_and_seeds_that_are_not_the_recipes(parsed):
    recipe = changed(tasks.recipe("language"), [*CHANGES, "data.evaluation_windows=32"])
    mine = {**of_recipe(recipe), "source": Content(False, "cd" * 32, {}), "kernels": "best"}
    runs = []
    for norm, rate, p in (("layer", 0.004, None), ("rms", 0.5, None), ("prms", 0.008, 0.25), ("dyt", 0.5, None)):
        train = replace(recipe.train, learning_rate=rate)
        runs += [run_record(norm, seed, p=p, **{**mine, "train": train}) for seed in range(5)]
    runs = [replace(run, source_name="my text; rm -rf") for run in runs]
    (experiment,) = collect(runs)
    assert len(commands.of_runs(experiment, "best")) == 2
    check_runs(parsed, experiment, "best")
    args, *_ = parsed(commands.of_runs(experiment, "best")[0])
    assert str(args.data) == "my text; rm -rf"
    assert args.seeds == 5


def test_a_sweep_of_p_and_a_timing(parsed):
    recipe = tasks.recipe("language")
    runs = [run_record("prms", 0, p=p, **of_recipe(recipe)) for p in (0.0625, 0.25, 1.0)]
    runs = [replace(r, identity=replace(r.identity, train=replace(recipe.train, learning_rate=0.5))) for r in runs]
    identity = {key: value for key, value in of_recipe(recipe).items() if key != "train"}
    timing = timing_record({"layer": [2.0] * 7, "prms": [1.0] * 7}, **identity, batch=recipe.train.batch)
    (experiment,) = collect([*runs, timing])
    (command,) = commands.of_p(experiment, "rmsnorm", experiment.p_sweep("rmsnorm"))
    args, swept, _ = parsed(command)
    assert args.sweep_p == [0.0625, 0.25, 1.0]
    assert args.seeds == 1
    assert swept.learning_rate("prms") == 0.5
    (command,) = commands.of_times(experiment, timing)
    args, timed, norms = parsed(command)
    assert (args.threads, args.seeds) == (timing.machine.torch_threads, 1)
    assert (norms, timed.timing, timed.p) == (["layer", "prms"], timing.identity.timing, 0.125)
    demo = timing_record({"layer": [2.0], "rms-torch": [1.0]}, **identity, batch=recipe.train.batch)
    assert commands.of_times(experiment, demo) == ["rmsnorm demo --details"]  # no other command times torch's RMSNorm


def test_a_norm_of_the_users_own_is_named_by_its_source():
    recipe = tasks.recipe("language")
    run = replace(run_record("MyNorm@3f2a91c0", **of_recipe(recipe)), norm_source="my_norm.py:MyNorm")
    identity = {key: value for key, value in of_recipe(recipe).items() if key != "train"}
    times = {"layer": [2.0], "MyNorm@3f2a91c0": [1.0]}
    timing = timing_record(times, **identity, batch=recipe.train.batch)
    (experiment,) = collect([run, timing])
    (of_runs,), (of_times,) = commands.of_runs(experiment, "rmsnorm"), commands.of_times(experiment, timing)
    assert of_runs.startswith("rmsnorm compare language --norm my_norm.py:MyNorm --seeds 1 ")
    assert of_times.startswith("rmsnorm compare language --norm layer my_norm.py:MyNorm --seeds 1 ")


def test_seeds_that_compare_would_not_make_alone_are_trained_one_by_one(parsed):
    recipe = tasks.recipe("language")
    runs = [run_record("rms", 7, **of_recipe(recipe))]
    identity = {key: value for key, value in of_recipe(recipe).items() if key != "train"}
    timing = timing_record({"rms": [1.0]}, p=recipe.p, **identity, batch=recipe.train.batch)
    (experiment,) = collect([*runs, timing])
    (command,) = commands.of_runs(experiment, "rmsnorm")
    assert command.startswith("rmsnorm train language --norm rms --seed 7")
    assert "#" not in command
    (command,) = commands.of_times(experiment, timing)
    assert parsed(command)[0].seeds == 1  # it has to train, and one run is the least
    (experiment,) = collect([*runs, run_record("layer", 0, **of_recipe(recipe))])
    (command,) = commands.of_runs(experiment, "rmsnorm")
    assert command.startswith("rmsnorm train language --norm NORM --seed SEED ")
    assert command.endswith("# for each NORM of layer, rms and each SEED of 0, 7")


def test_runs_by_several_processes_and_unknown_tasks():
    recipe = tasks.recipe("language")
    (experiment,) = collect([run_record("rms", 3, processes="fsdp2", **of_recipe(recipe))])
    (command,) = commands.of_runs(experiment, "rmsnorm")
    assert command.startswith("torchrun --nproc-per-node 2 -m rmsnorm.cli train language --norm rms --seed 3 ")
    assert "--strategy fsdp" in command
    (unknown,) = collect([run_record(task="unheard-of")])
    assert commands.of_runs(unknown, "rmsnorm") == []
