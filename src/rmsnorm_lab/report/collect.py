"""Records sorted into experiments: the runs with equal settings, and their timings."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rmsnorm_lab.experiments import norms, tasks
from rmsnorm_lab.experiments.data.official import is_official
from rmsnorm_lab.experiments.recipes.common import KERNELS, Recipe, TrainConfig
from rmsnorm_lab.experiments.record import (
    Record,
    RunRecord,
    RunResult,
    Setting,
    TimingRecord,
    runs_of,
    timings_of,
)
from rmsnorm_lab.plain import to_plain


@dataclass(frozen=True)
class Line:
    """A normaliser's runs with one p and one learning rate: they differ in their seeds alone."""

    norm: str
    p: float | None
    """pRMSNorm's; None for all others."""
    learning_rate: float
    records: tuple[RunRecord, ...]
    """By seed."""

    @property
    def parameters(self) -> int | None:
        """Of the network; None if the records are too old to say."""
        return next((run.result.parameters for run in self.records if run.result.parameters), None)


@dataclass
class Experiment:
    """One task on one data source with one recipe: any number of normalisers, seeds and kernels."""

    task: str
    setting: Setting
    """What the identities of all of its records agree in."""
    batch: int
    accumulate: int
    train: TrainConfig | None = None
    """As in the identities of its runs, the learning rate left out (1); None if nothing was trained."""
    processes: str | None = None
    lines: dict[str, list[Line]] = field(default_factory=dict)
    """Kernels -> in the order of tables; every p and learning rate on its own."""
    timings: dict[str, TimingRecord] = field(default_factory=dict)
    """Kernels -> the timing with most rounds (``_most_telling``)."""
    apart: str = ""
    """What a heading says after the task: the steps, and every setting in which the task's experiments differ."""
    other_timings: dict[str, list[TimingRecord]] = field(default_factory=dict)
    """Kernels -> the timings that are not shown."""

    @property
    def timed_as(self) -> tuple[Any, ...]:
        """What a timing of this experiment agrees in with its runs."""
        return self.task, self.setting, self.batch, self.accumulate

    @property
    def training(self) -> dict[str, Any]:
        """The settings of its runs' training by name, without the learning rate; empty if nothing was trained."""
        found = {} if self.train is None else to_plain(self.train)
        return {name: found[name] for name in sorted(found) if name != "learning_rate"}

    @property
    def records(self) -> list[Record]:
        trained = [record for lines in self.lines.values() for line in lines for record in line.records]
        return [*trained, *self.timings.values()]

    @property
    def source_name(self) -> str:
        """Of the data, as one of the records has it: others may have found the same data under another name."""
        return self.records[0].source_name

    @property
    def heading(self) -> str:
        """The task, and what tells it from other experiments of the task."""
        return f"{self.task}, {self.apart}"

    @property
    def examples(self) -> tuple[float, str] | None:
        """How many of what a step learns from: (1024, "characters"); None for an unknown task."""
        unit = tasks.EXAMPLES.get(self.task)
        if unit is None:
            return None
        if (self.setting.data or {}).get("by_tokens"):
            return self.batch, "tokens (at most, with padding)"
        return self.batch * self.setting.model.get("context", 1), unit

    @property
    def official(self) -> bool:
        """Whether the data are those that the paper's figures were taken on."""
        return is_official(self.task, self.setting.source)

    @property
    def result(self) -> RunResult:
        """Of any run: for what is the same in all of them, metrics and references."""
        return next(iter(self.lines.values()))[0].records[0].result

    def main(self, kernels: str) -> list[Line]:
        """One line a normaliser: that of the recipe's p and learning rate, or else the one with most seeds."""
        recipe = recipe_of(self)

        def rank(line: Line) -> tuple[bool, bool, int]:
            if recipe is None:
                return False, False, len(line.records)
            return (
                line.learning_rate == recipe.learning_rate(line.norm),
                line.p in (None, recipe.p),
                len(line.records),
            )

        best: dict[str, Line] = {}
        for line in self.lines[kernels]:
            if line.norm not in best or rank(line) > rank(best[line.norm]):
                best[line.norm] = line
        return list(best.values())

    def p_sweep(self, kernels: str) -> list[Line]:
        """pRMSNorm's runs that differ from those of the table in p alone, by p; empty for a single p."""
        main = next((line for line in self.main(kernels) if line.norm == "prms"), None)
        if main is None:
            return []
        same = [line for line in self.lines[kernels] if (line.norm, line.learning_rate) == ("prms", main.learning_rate)]
        return same if len(same) > 1 else []


def collect(records: Sequence[Record]) -> list[Experiment]:
    """The experiments: tasks in the order of the command line, and of a task the one with most records first."""
    experiments: dict[str, Experiment] = {}
    lines: dict[tuple[str, str, str, float | None, float], list[RunRecord]] = {}
    for run in runs_of(records):
        identity = run.identity
        train = replace(identity.train, learning_rate=1.0)
        name = _name(run.task, identity.setting, train, identity.processes)
        batch, accumulate = train.batch, train.accumulate
        made = Experiment(run.task, identity.setting, batch, accumulate, train, identity.processes)
        experiments.setdefault(name, made)
        key = (name, identity.kernels, identity.norm, identity.p, identity.train.learning_rate)
        lines.setdefault(key, []).append(run)
    order = sorted(lines, key=lambda key: (norms.place(key[2]), key[3] or 0.0, key[4]))
    for name, kernels, norm, p, rate in order:
        members = sorted(lines[name, kernels, norm, p, rate], key=lambda run: run.identity.seed)
        experiments[name].lines.setdefault(kernels, []).append(Line(norm, p, rate, tuple(members)))

    for timing in timings_of(records):
        timed = Experiment(timing.task, timing.identity.setting, timing.identity.batch, timing.identity.accumulate)
        of_it = [each for each in experiments.values() if each.timed_as == timed.timed_as]
        if not of_it:
            of_it = [timed]
            experiments[_name(*timed.timed_as)] = timed
        for experiment in of_it:
            experiment.other_timings.setdefault(timing.identity.kernels, []).append(timing)
    for experiment in experiments.values():
        for name in KERNELS:
            if found := experiment.other_timings.get(name):
                experiment.timings[name] = _most_telling(found, experiment)
                found.remove(experiment.timings[name])
        experiment.lines = {name: experiment.lines[name] for name in KERNELS if name in experiment.lines}
    known = list(tasks.TASKS)
    return sorted(
        experiments.values(),
        key=lambda e: (known.index(e.task) if e.task in known else len(known), e.task, -len(e.records)),
    )


def processor(record: Record) -> str:
    """What computed."""
    return record.machine.processor(record.identity.device)


def _most_telling(timings: Sequence[TimingRecord], experiment: Experiment) -> TimingRecord:
    trained_on = {processor(run) for lines in experiment.lines.values() for line in lines for run in line.records}

    def rank(timing: TimingRecord) -> tuple[bool, int, int, bool, str]:
        norms = timing.identity.norms
        return "layer" in norms, timing.result.rounds, len(norms), processor(timing) in trained_on, timing.finished

    return max(timings, key=rank)


def _name(*parts: Any) -> str:
    return json.dumps(to_plain(parts), sort_keys=True)


def recipe_of(experiment: Experiment) -> Recipe | None:
    """The recipe that the records' settings were made from; None for a task that this version does not have."""
    task, size = experiment.task, experiment.setting.size
    return tasks.recipe(task, size) if task in tasks.TASKS and size in tasks.sizes(task) else None
