"""Records sorted into experiments: what was trained alike, and what of it was timed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rmsnorm_lab.experiments import tasks
from rmsnorm_lab.experiments.data.official import is_official
from rmsnorm_lab.experiments.recipes.common import KERNELS, NORMS, Recipe
from rmsnorm_lab.experiments.runs import Record

_OF_A_RUN = ("norm", "seed", "p", "kernels", "train")
_OF_A_TIMING = ("timing", "batch", "norms", "p", "machine", "kernels")


@dataclass(frozen=True)
class Line:
    """A normaliser's runs with one p and one learning rate: they differ in their seeds alone."""

    norm: str
    p: float | None
    """pRMSNorm's; None for all others."""
    learning_rate: float
    records: tuple[Record, ...]
    """By seed."""


@dataclass
class Experiment:
    """One task on one data source with one recipe: any number of normalisers, seeds and kernels."""

    task: str
    common: dict[str, Any]
    """What the identities of all of its records agree in: source, size, model, data, device, precision."""
    batch: int
    train: dict[str, Any] | None = None
    """As in the identities of its runs, but for the learning rate; None if nothing was trained."""
    lines: dict[str, list[Line]] = field(default_factory=dict)
    """Kernels -> in the order of tables; every p and learning rate on its own."""
    timings: dict[str, Record] = field(default_factory=dict)
    """Kernels -> the timing with most rounds (``_most_telling``)."""
    other_timings: dict[str, list[Record]] = field(default_factory=dict)
    """Kernels -> the timings that are not shown."""

    @property
    def records(self) -> list[Record]:
        trained = [record for lines in self.lines.values() for line in lines for record in line.records]
        return trained + list(self.timings.values())

    @property
    def source_name(self) -> str:
        """Of the data, as one of the records has it: others may have found the same data under another name."""
        found: str = self.records[0]["source_name"]
        return found

    @property
    def official(self) -> bool:
        """Whether the data are those that the paper's figures were taken on."""
        return is_official(self.task, self.common["source"])

    @property
    def result(self) -> dict[str, Any]:
        """Of any run: for what is the same in all of them, metrics and references."""
        found: dict[str, Any] = next(iter(self.lines.values()))[0].records[0]["result"]
        return found

    def main(self, kernels: str) -> list[Line]:
        """One line a normaliser: that of the recipe's p and learning rate, or else the one with most seeds."""
        recipe = _recipe(self.task, self.common["size"])

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


def collect(records: Sequence[Record]) -> list[Experiment]:
    """The experiments: tasks in the order of the command line, and of a task the one with most records first."""
    experiments: dict[str, Experiment] = {}
    lines: dict[tuple[str, str, str, float | None, float], list[Record]] = {}
    for record in records:
        if record["kind"] == "run":
            identity = record["identity"]
            train = {name: value for name, value in identity["train"].items() if name != "learning_rate"}
            common = _without(identity, _OF_A_RUN)
            name = _name(record["task"], common, train)
            experiments.setdefault(name, Experiment(record["task"], common, train["batch"], train))
            rate = identity["train"]["learning_rate"]
            key = (name, identity["kernels"], identity["norm"], identity.get("p"), rate)
            lines.setdefault(key, []).append(record)
    order = sorted(lines, key=lambda key: (NORMS.index(key[2]), key[3] or 0.0, key[4]))
    for name, kernels, norm, p, rate in order:
        members = sorted(lines[name, kernels, norm, p, rate], key=lambda record: record["identity"]["seed"])
        experiments[name].lines.setdefault(kernels, []).append(Line(norm, p, rate, tuple(members)))

    for record in records:
        if record["kind"] == "timing":
            identity = record["identity"]
            common, batch = _without(identity, _OF_A_TIMING), identity["batch"]
            timed = (record["task"], common, batch)
            of_it = [e for e in experiments.values() if (e.task, _without(e.common, ["processes"]), e.batch) == timed]
            if not of_it:
                of_it = [Experiment(*timed)]
                experiments[_name(record["task"], common, {"batch": batch})] = of_it[0]
            for experiment in of_it:
                experiment.other_timings.setdefault(identity["kernels"], []).append(record)
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
    machine, device = record["machine"], record["identity"]["device"]
    found: str = machine["cpu"] if device == "cpu" else machine["gpu"] or machine["cpu"]
    return found


def rounds(timing: Record) -> int:
    return len(next(iter(timing["result"]["milliseconds"].values())))


def _most_telling(timings: Sequence[Record], experiment: Experiment) -> Record:
    trained_on = {processor(r) for lines in experiment.lines.values() for line in lines for r in line.records}

    def rank(timing: Record) -> tuple[bool, int, int, bool, str]:
        norms = timing["identity"]["norms"]
        return "layer" in norms, rounds(timing), len(norms), processor(timing) in trained_on, timing["finished"]

    return max(timings, key=rank)


def _without(identity: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in identity.items() if name not in names}


def _name(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True)


def _recipe(task: str, size: str) -> Recipe | None:
    """The recipe that the records' settings were made from; None for a task that this version does not have."""
    return tasks.recipe(task, size) if task in tasks.TASKS and size in tasks.SIZES else None
