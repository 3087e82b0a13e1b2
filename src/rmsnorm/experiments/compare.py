"""The comparison: what has to be run, what of it is there already, and what it comes to."""

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, Protocol

import torch

from rmsnorm.experiments import timing
from rmsnorm.experiments.recipes import LABELS, Settings
from rmsnorm.experiments.runs import Record, RunStore, file_name
from rmsnorm.experiments.tasks.language import Text
from rmsnorm.experiments.timing import Spread
from rmsnorm.experiments.train import train
from rmsnorm.machine import describe

TASK = "language"


@dataclass(frozen=True)
class Job:
    """One thing to run and record: the timing, or the training of one normaliser with one seed."""

    kind: str
    identity: dict[str, Any]

    @property
    def file_name(self) -> str:
        return file_name(TASK, self.kind, self.identity)

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


def jobs(settings: Settings, norms: list[str], seeds: int, text: Text) -> list[Job]:
    """The timing first; then seed by seed, so that what an interruption leaves is a comparison too.

    Quality does not depend on the machine (but for rounding) and times do: only the timing is done anew when the
    machine or a version is another one.
    """
    whole = asdict(settings)
    train_config, timing_config = whole.pop("train"), whole.pop("timing")
    common = {**whole, "text": asdict(text.source)}
    timed = {"timing": timing_config, "train": {"batch": settings.train.batch}}
    planned = [Job("timing", {**common, **timed, "machine": machine()})]
    for seed in range(seeds):
        planned += [Job("run", {**common, "train": train_config, "norm": norm, "seed": seed}) for norm in norms]
    return planned


class Watcher(Protocol):
    """Is told how the work goes."""

    def begin(self, job: Job) -> None: ...
    def advance(self, job: Job, share: float, bits: float | None) -> None: ...
    def end(self, job: Job, record: Record, kept: bool) -> None: ...


def run_jobs(
    planned: list[Job], settings: Settings, text: Text, store: RunStore, overwrite: bool, watcher: Watcher
) -> Iterator[Record]:
    """Do what is not recorded yet (all of it with ``overwrite``); yields the record of every job in turn."""
    for job in planned:
        record = None if overwrite else store.get(TASK, job.kind, job.identity)
        kept = record is not None
        if record is None:
            watcher.begin(job)
            result = _do(job, settings, text, watcher)
            record = store.put(TASK, job.kind, job.identity, machine=machine(), result=result)
        watcher.end(job, record, kept)
        yield record


def _do(job: Job, settings: Settings, text: Text, watcher: Watcher) -> dict[str, Any]:
    if job.kind == "timing":
        on_round = lambda done, total: watcher.advance(job, done / total, None)  # noqa: E731
        return {"milliseconds": timing.measure(settings, text, on_round)}
    on_step = lambda done, bits: watcher.advance(job, done / settings.train.steps, bits)  # noqa: E731
    return train(settings, job.identity["norm"], job.identity["seed"], text, on_step).as_record()


@dataclass(frozen=True)
class Row:
    """What the table says of one normaliser."""

    norm: str
    runs: int
    diverged: int
    bits_mean: float | None
    """Over the runs that did not diverge; None where all did."""
    bits_sd: float | None
    """Sample standard deviation over seeds; None for fewer than two runs that did not diverge."""
    milliseconds: float
    """LayerNorm's median step times the paired ratio: two medians of unpaired times could contradict the ratio."""
    to_layer: Spread | None
    """The step's time as a multiple of LayerNorm's; None for LayerNorm itself."""
    norm_share: Spread | None
    """The share of the step that the normalisers take; None for no norm."""


def row(norm: str, records: list[Record], milliseconds: dict[str, list[float]]) -> Row:
    """Sum up the runs of one normaliser and its times."""
    bits = [record["result"]["held_out_bits"] for record in records if record["result"]["status"] == "finished"]
    times = milliseconds[norm]
    to_layer = timing.ratio_to(milliseconds["layer"], times)
    return Row(
        norm=norm,
        runs=len(records),
        diverged=len(records) - len(bits),
        bits_mean=statistics.fmean(bits) if bits else None,
        bits_sd=statistics.stdev(bits) if len(bits) > 1 else None,
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
