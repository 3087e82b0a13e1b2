"""The comparison: what has to be run, what of it is there already, and what it comes to."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any, Protocol

import torch

from rmsnorm.experiments import timing
from rmsnorm.experiments.recipes.common import LABELS
from rmsnorm.experiments.runs import Record, RunStore, file_name
from rmsnorm.experiments.task import Task
from rmsnorm.experiments.timing import Spread
from rmsnorm.experiments.train import Setup, train
from rmsnorm.machine import describe


@dataclass(frozen=True)
class Job:
    """One thing to run and record: the timing, or the training of one normaliser with one seed."""

    task: str
    kind: str
    identity: dict[str, Any]

    @property
    def file_name(self) -> str:
        return file_name(self.task, self.kind, self.identity)

    @property
    def title(self) -> str:
        if self.kind == "timing":
            return "step times"
        return f"{LABELS[self.identity['norm']]}, seed {self.identity['seed']}"


def machine() -> dict[str, Any]:
    """What a record is made on: the machine, the versions, and how torch runs in this process."""
    found = describe()
    return {
        **found,
        "versions": {**found["versions"], "lightning-fabric": version("lightning-fabric")},
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def jobs(task: Task, setup: Setup, norms: Sequence[str], seeds: int) -> list[Job]:
    """The timing first; then seed by seed, so that what an interruption leaves is a comparison too.

    Quality does not depend on the machine (but for rounding) and times do: only the timing is done anew when the
    machine or a version is another one.
    """
    recipe = task.recipe
    common = {
        **asdict(setup),
        "source": asdict(task.source),
        "size": recipe.size,
        "model": asdict(recipe.model),
        "data": None if recipe.data is None else asdict(recipe.data),
    }
    timed = {"timing": asdict(recipe.timing), "batch": recipe.train.batch, "norms": timed_norms(task, norms)}
    planned = [Job(task.name, "timing", {**common, **timed, "p": recipe.p, "machine": machine()})]
    for seed in range(seeds):
        for norm in norms:
            settings = replace(recipe.train, learning_rate=recipe.learning_rate(norm))
            of_norm = {"norm": norm, "seed": seed, "train": asdict(settings)}
            if norm == "prms":
                of_norm["p"] = recipe.p
            planned.append(Job(task.name, "run", {**common, **of_norm}))
    return planned


def timed_norms(task: Task, norms: Sequence[str]) -> list[str]:
    """The default ones, so that a comparison of fewer finds their times recorded, and whatever else is compared."""
    return [norm for norm in task.norms if norm in {*task.default_norms, *norms, "none", "layer"}]


class Watcher(Protocol):
    """Is told how the work goes."""

    def begin(self, job: Job) -> None: ...
    def advance(self, job: Job, share: float, loss: float | None) -> None: ...
    def end(self, job: Job, record: Record, kept: bool) -> None: ...


def run_jobs(
    planned: list[Job], task: Task, setup: Setup, store: RunStore, overwrite: bool, watcher: Watcher
) -> Iterator[Record]:
    """Do what is not recorded yet (all of it with ``overwrite``); yields the record of every job in turn."""
    for job in planned:
        record = None if overwrite else store.get(task.name, job.kind, job.identity)
        kept = record is not None
        if record is None:
            watcher.begin(job)
            result = _do(job, task, setup, watcher)
            record = store.put(task.name, job.kind, job.identity, machine=machine(), result=result)
        watcher.end(job, record, kept)
        yield record


def _do(job: Job, task: Task, setup: Setup, watcher: Watcher) -> dict[str, Any]:
    if job.kind == "timing":
        on_round = lambda done, total: watcher.advance(job, done / total, None)  # noqa: E731
        return {"milliseconds": timing.measure(task, setup, job.identity["norms"], on_round)}
    on_step = lambda done, loss: watcher.advance(job, done / task.recipe.train.steps, loss)  # noqa: E731
    outcome = train(task, setup, job.identity["norm"], job.identity["seed"], on_step)
    return {**outcome.as_record(), "metrics": list(map(asdict, task.metrics)), "references": dict(task.references)}


@dataclass(frozen=True)
class Quality:
    """A metric over seeds."""

    mean: float
    sd: float | None
    """Sample standard deviation; None for a single run."""


@dataclass(frozen=True)
class Row:
    """What the table says of one normaliser."""

    norm: str
    runs: int
    diverged: int
    quality: dict[str, Quality]
    """Of each metric, over the runs that did not diverge; empty where all did."""
    milliseconds: float
    """LayerNorm's median step times the paired ratio: two medians of unpaired times could contradict the ratio."""
    to_layer: Spread | None
    """The step's time as a multiple of LayerNorm's; None for LayerNorm itself."""
    norm_share: Spread | None
    """The share of the step that the normalisers take; None for no norm."""


def row(norm: str, records: list[Record], milliseconds: dict[str, list[float]]) -> Row:
    """Sum up the runs of one normaliser and its times."""
    finished = [record["result"]["quality"] for record in records if record["result"]["status"] == "finished"]
    columns = {key: [quality[key] for quality in finished] for key in (finished[0] if finished else ())}
    times = milliseconds[norm]
    to_layer = timing.ratio_to(milliseconds["layer"], times)
    return Row(
        norm=norm,
        runs=len(records),
        diverged=len(records) - len(finished),
        quality={
            key: Quality(statistics.fmean(column), statistics.stdev(column) if len(column) > 1 else None)
            for key, column in columns.items()
        },
        milliseconds=timing.spread(milliseconds["layer"]).median * to_layer.median,
        to_layer=None if norm == "layer" else to_layer,
        norm_share=None if norm == "none" else timing.share_beyond(milliseconds["none"], times),
    )


def mixed_machines(records: list[Record]) -> list[str]:
    """What the records were made with in more than one way: 'torch 2.12.0, 2.13.0'."""
    found: dict[str, set[str]] = {}
    for record in records:
        made = record["machine"]
        for name, value in {**made["versions"], **{key: made[key] for key in ("cpu", "python", "commit")}}.items():
            found.setdefault(name, set()).add(str(value))
    return [f"{name} {', '.join(sorted(values))}" for name, values in found.items() if len(values) > 1]
