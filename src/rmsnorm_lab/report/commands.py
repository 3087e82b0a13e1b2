"""The command lines that make an experiment's records: the recipe of their size, and every setting that differs."""

import itertools
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from rmsnorm_lab.experiments import norms, rate_sweep, timing_only
from rmsnorm_lab.experiments.recipes.common import Recipe
from rmsnorm_lab.experiments.recipes.settings import shown
from rmsnorm_lab.experiments.record import TimingRecord
from rmsnorm_lab.plain import to_plain
from rmsnorm_lab.report.collect import Experiment, Line, recipe_of


def of_runs(experiment: Experiment, kernels: str) -> list[str]:
    """Those of the table of quality: one for each learning rate that is not the recipe's.

    ``compare`` takes seeds from 0 on. Others, and several processes, are of ``train``, a run at a time.
    """
    recipe = recipe_of(experiment)
    if recipe is None:
        return []
    by_rate: dict[float | None, list[Line]] = {}
    for line in experiment.main(kernels):
        own = None if line.learning_rate == recipe.learning_rate(line.norm) else line.learning_rate
        by_rate.setdefault(own, []).append(line)
    return [_of_lines(experiment, recipe, kernels, lines, rate) for rate, lines in by_rate.items()]


def of_rates(experiment: Experiment, kernels: str, lines: Sequence[Line]) -> list[str]:
    """That of the sweep of the learning rate, with the seeds that it compares."""
    recipe = recipe_of(experiment)
    if recipe is None or experiment.processes:
        return []
    runs = {line.norm: [run for each in lines if each.norm == line.norm for run in each.records] for line in lines}
    seeds = [seed for of_norm in runs.values() for seed in rate_sweep.seeds_of_all_rates(of_norm)]
    rates = (f"{rate:g}" for rate in sorted({line.learning_rate for line in lines}))
    flags = [*_norms(experiment, list(map(_name, lines))), *_seeds(seeds), *_kernels(kernels), "--sweep-lr", *rates]
    settings = [*_training(experiment, recipe), *dict.fromkeys(_p(lines, recipe))]
    return [_command(experiment, "rmsnorm compare", flags, settings)]


def of_p(experiment: Experiment, kernels: str, lines: Sequence[Line]) -> list[str]:
    """That of the sweep of pRMSNorm's p."""
    recipe = recipe_of(experiment)
    if recipe is None or experiment.processes:
        return []
    settings, rate = _training(experiment, recipe), lines[0].learning_rate
    if rate != recipe.learning_rate("prms"):
        settings.append(f"train.learning_rate={rate:g}")
    values = (f"{line.p:g}" for line in lines)
    flags = [*_seeds(_all_seeds(lines)), *_kernels(kernels), "--sweep-p", *values]
    return [_command(experiment, "rmsnorm compare", flags, settings)]


def of_times(experiment: Experiment, timing: TimingRecord) -> list[str]:
    """That of the tables of times. Without ``--timing-only`` it trains, too, what is not recorded.

    It always names the threads: a timing with another number of them is another record.
    """
    recipe = recipe_of(experiment)
    if recipe is None:
        return []
    identity, settings = timing.identity, _training(experiment, recipe)
    if norms.TIMED_ONLY.keys() & set(identity.norms):
        return ["rmsnorm demo --details"]
    alone = identity.timing.seconds is not None
    if alone:
        recipe = timing_only.changed(recipe, None)
    if alone or experiment.train is None:
        settings += _changes("train.", {"batch": identity.batch, "accumulate": identity.accumulate}, recipe.train)
    if identity.p != recipe.p:
        settings.append(f"p={identity.p:g}")
    settings += _changes("timing.", to_plain(identity.timing), recipe.timing)
    lines = [line for lines in experiment.lines.values() for line in lines]
    names = {**{line.norm: _name(line) for line in lines}, **(timing.norm_sources or {})}
    norms_of_it = _norms(experiment, [names.get(norm, norm) for norm in identity.norms])
    flags = ["--timing-only"] if alone else _seeds(_from_0(_all_seeds(lines)))
    flags += ["--threads", str(identity.machine.torch_threads)]
    return [_command(experiment, "rmsnorm compare", [*norms_of_it, *flags], settings)]


def _of_lines(experiment: Experiment, recipe: Recipe, kernels: str, lines: Sequence[Line], rate: float | None) -> str:
    settings = [*_training(experiment, recipe), *_p(lines, recipe)]
    if rate is not None:
        settings.append(f"train.learning_rate={rate:g}")
    seeds, names = sorted(set(_all_seeds(lines))), list(map(_name, lines))
    if experiment.processes is None and seeds == _from_0(seeds):
        flags = [*_norms(experiment, names), *_seeds(seeds), *_kernels(kernels)]
        return _command(experiment, "rmsnorm compare", [*flags, "--timing-rounds", "0"], settings)
    train, by = "rmsnorm train", []
    if experiment.processes is not None:
        strategy = experiment.processes.rstrip("0123456789")
        number = experiment.processes.removeprefix(strategy)
        train, by = f"torchrun --nproc-per-node {number} -m rmsnorm.cli train", ["--strategy", strategy]
    alone = len(names) == len(seeds) == 1
    norm, seed = (names[0], str(seeds[0])) if alone else ("NORM", "SEED")
    command = _command(experiment, train, ["--norm", norm, "--seed", seed, *by, *_kernels(kernels)], settings)
    each = f"  # for each NORM of {', '.join(names)} and each SEED of {', '.join(map(str, seeds))}"
    return command + ("" if alone else each)


def _command(experiment: Experiment, program: str, flags: Sequence[str], settings: Sequence[str]) -> str:
    setting = experiment.setting
    words = [*program.split(), experiment.task]
    if not setting.source.stand_in:
        words += ["--data", experiment.source_name]
    for flag, value, usual in (
        ("--size", setting.size, "small"),
        ("--device", setting.device, "cpu"),
        ("--precision", setting.precision, "32-true"),
    ):
        words += [] if value == usual else [flag, value]
    words += flags
    if settings:
        words += ["--set", *settings]
    return shlex.join(words)


def _training(experiment: Experiment, recipe: Recipe) -> list[str]:
    """NAME=VALUE of model, data and training where they are not the recipe's."""
    setting = experiment.setting
    return [
        *_changes("model.", setting.model, recipe.model),
        *_changes("data.", setting.data or {}, recipe.data),
        *_changes("train.", experiment.training, recipe.train),
    ]


def _changes(section: str, recorded: dict[str, Any], recipe: Any) -> Iterator[str]:
    usual = to_plain(recipe) or {}
    defaults = {name: getattr(recipe, name, None) for name in recorded}
    for name, value in recorded.items():
        if value != usual.get(name, to_plain(defaults[name])):
            yield f"{section}{name}={shown(tuple(value) if isinstance(value, list) else value)}"


def _p(lines: Sequence[Line], recipe: Recipe) -> list[str]:
    return [f"p={line.p:g}" for line in lines if line.p is not None and line.p != recipe.p]


def _name(line: Line) -> str:
    """As ``--norm`` takes it."""
    return line.records[0].norm_source or line.norm


def _norms(experiment: Experiment, names: Sequence[str]) -> list[str]:
    names = list(dict.fromkeys(names))
    return [] if tuple(names) == norms.by_default(experiment.task) else ["--norm", *names]


def _all_seeds(lines: Sequence[Line]) -> list[int]:
    return [record.identity.seed for line in lines for record in line.records]


def _seeds(seeds: Sequence[int]) -> list[str]:
    return ["--seeds", str(max(seeds) + 1)] if seeds and max(seeds) != 2 else []  # three by default


def _from_0(seeds: Sequence[int]) -> list[int]:
    """The seeds from 0 on as far as there is none missing; 0 alone if it is missing, and none if there are none."""
    first = next(number for number in itertools.count() if number not in seeds)
    return list(range(max(first, 1))) if seeds else []


def _kernels(kernels: str) -> list[str]:
    return [] if kernels == "rmsnorm" else ["--kernels", kernels]
