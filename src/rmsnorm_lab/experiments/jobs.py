"""What a comparison has to run, what identifies it, and doing what is not recorded yet."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any, Protocol

import torch

from rmsnorm_lab.experiments import profile, timing
from rmsnorm_lab.experiments.checkpoints import Checkpoints, rename, stems
from rmsnorm_lab.experiments.learner import Setup
from rmsnorm_lab.experiments.memory import give_back
from rmsnorm_lab.experiments.recipes.common import KERNELS, LABELS, identity_of
from rmsnorm_lab.experiments.runs import Record, RunStore, file_name
from rmsnorm_lab.experiments.task import Task
from rmsnorm_lab.experiments.train import Listener, Outcome, Run
from rmsnorm_lab.machine import describe


@dataclass(frozen=True)
class Job:
    """One thing to run and record: the timing in one setting, or the training of one normaliser with one seed."""

    task: Task
    setup: Setup
    kind: str
    identity: dict[str, Any]

    @property
    def file_name(self) -> str:
        return file_name(self.task.name, self.kind, self.identity)

    @property
    def stem(self) -> str:
        """What the names of all files of this run begin with."""
        return self.file_name.removesuffix(".jsonl")

    @property
    def units(self) -> int:
        """The steps that it takes, of one normaliser each: what it is weighed by in the time that is left."""
        if self.kind == "run":
            return self.task.recipe.train.steps
        rounds = self.task.recipe.timing.warmup_rounds + self.task.recipe.timing.rounds
        return len(self.identity["norms"]) * (rounds + profile.WARM_UP + profile.STEPS)

    @property
    def title(self) -> str:
        if self.kind == "timing":
            return f"step times, {self.setup.kernels}"
        rate = self.identity["train"]["learning_rate"]
        usual = rate == self.task.recipe.learning_rate(self.identity["norm"])
        p = "" if self.identity["p"] is None else f" of {100 * self.identity['p']:g} %"
        of_norm = f"{LABELS[self.identity['norm']]}{p}, seed {self.identity['seed']}"
        return of_norm + ("" if usual else f", learning rate {rate:g}")

    def result(self, outcome: Outcome) -> dict[str, Any]:
        """The record's result of a training: with what reads its figures without the task's data."""
        task = self.task
        return {**outcome.as_record(), "metrics": list(map(asdict, task.metrics)), "references": dict(task.references)}


def machine() -> dict[str, Any]:
    """What a record is made on: the machine, the versions, and how torch runs in this process."""
    found = describe()
    return {
        **found,
        "versions": {**found["versions"], "lightning-fabric": version("lightning-fabric")},
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def training(
    task: Task,
    setup: Setup,
    norm: str,
    seed: int,
    learning_rate: float | None = None,
    processes: str | None = None,
) -> Job:
    """With the recipe's learning rate, or another. Quality does not depend on the machine, but for rounding.

    ``processes`` says by which a run was trained if by several ("ddp2"): BatchNorm's statistics and the draws of
    dropout and noise are those of each.
    """
    settings = replace(task.recipe.train, learning_rate=learning_rate or task.recipe.learning_rate(norm))
    of_norm = {
        "norm": norm,
        "seed": seed,
        "train": identity_of(settings),
        "p": task.recipe.p if norm == "prms" else None,
    }
    by = {} if processes is None else {"processes": processes}
    return Job(task, setup, "run", {**_common(task, setup), **of_norm, **by})


def timings(task: Task, setup: Setup, norms: Sequence[str]) -> list[Job]:
    """``norms`` in each of the three settings, which are never mixed. Times depend on the machine."""
    found = []
    for kernels in KERNELS:
        train = {key: value for key, value in identity_of(task.recipe.train).items() if key in ("batch", "accumulate")}
        of_timing = {"timing": identity_of(task.recipe.timing), **train, "norms": list(norms)}
        own = replace(setup, kernels=kernels)
        identity = {**_common(task, own), **of_timing, "p": task.recipe.p, "machine": machine()}
        found.append(Job(task, own, "timing", identity))
    return found


def _common(task: Task, setup: Setup) -> dict[str, Any]:
    recipe = task.recipe
    return {
        **identity_of(setup),
        "source": {name: value for name, value in identity_of(task.source).items() if name != "name"},
        "size": recipe.size,
        "model": identity_of(recipe.model),
        "data": None if recipe.data is None else identity_of(recipe.data),
    }


class Watcher(Protocol):
    """Is told how the work goes."""

    def plan(self, todo: Sequence[Job]) -> None: ...
    def begin(self, job: Job) -> None: ...
    def advance(self, done: int, taken: int = 1, loss: float | None = None) -> None: ...
    def doing(self, what: str) -> None: ...
    def evaluated(self, figures: dict[str, float]) -> None: ...
    def end(self, job: Job, record: Record, kept: bool) -> None: ...
    def say(self, message: str) -> None: ...


def recorded(job: Job, store: RunStore) -> Record | None:
    """The job's record, if it has been done."""
    return store.get(job.task.name, job.kind, job.identity)


def keep(job: Job, store: RunStore, result: dict[str, Any]) -> Record:
    """Keep what a job came to."""
    return store.put(
        job.task.name, job.kind, job.identity, source_name=job.task.source.name, machine=machine(), result=result
    )


def do_all(
    planned: Sequence[Job], store: RunStore, overwrite: bool, watcher: Watcher, every: int | None = None
) -> Iterator[Record]:
    """Do what is not recorded yet (all of it with ``overwrite``); yields the record of every job in turn.

    ``every`` is how many steps lie between checkpoints (None: one at each evaluation).
    """
    found = [None if overwrite else recorded(job, store) for job in planned]
    watcher.plan([job for job, record in zip(planned, found, strict=True) if record is None])
    for job, record in zip(planned, found, strict=True):
        kept = record is not None
        if record is None:
            watcher.begin(job)
            result = _time(job, watcher) if job.kind == "timing" else _train(job, store, overwrite, watcher, every)
            record = keep(job, store, result)
            checkpoints_of(job, store, watcher).remove()
            give_back()
        watcher.end(job, record, kept)
        yield record


def taken_over(job: Job, store: RunStore) -> str | None:
    """The processes that the run is by in the end: the job's own, unless others have begun it and not finished it.

    Their checkpoints become the run's, and its record says by whom it was trained: "fsdp2-then-1".
    """
    mine, folder = job.identity.get("processes"), store.folder / "checkpoints"
    base = replace(job, identity={**job.identity, "processes": None}).stem
    begun = stems(folder, base)
    if recorded(job, store) or job.stem in begun:
        return mine
    for stem in begun:
        before = stem.removeprefix(base).removeprefix("-") or "1"
        mine_last = before.split("-then-")[-1] == (mine or "1")
        if (store.folder / f"{stem}.jsonl").exists():
            if mine_last:
                return before
        else:
            by = before if mine_last else f"{before}-then-{mine or '1'}"
            rename(folder, stem, f"{base}-{by}")
            return by
    return mine


def checkpoints_of(job: Job, store: RunStore, watcher: Watcher) -> Checkpoints:
    return Checkpoints(store.folder / "checkpoints", job.stem, watcher.say)


def _time(job: Job, watcher: Watcher) -> dict[str, Any]:
    norms = job.identity["norms"]
    timed = job.units - len(norms) * (profile.WARM_UP + profile.STEPS)
    milliseconds = timing.measure(
        job.task, job.setup, norms, lambda done, total: watcher.advance(timed * done // total, len(norms))
    )
    give_back()
    profiles = {}
    for norm in norms:
        watcher.doing(f"profiling {LABELS[norm]}")
        profiles[norm] = profile.steps(job.task, job.setup, norm)
        timed += profile.WARM_UP + profile.STEPS
        watcher.advance(timed, profile.WARM_UP + profile.STEPS)
        give_back()
    return {
        "milliseconds": milliseconds,
        "profiled_share": {norm: found.norm_share for norm, found in profiles.items()},
        "peak_memory": {norm: found.peak_memory for norm, found in profiles.items()},
    }


def _train(job: Job, store: RunStore, overwrite: bool, watcher: Watcher, every: int | None) -> dict[str, Any]:
    checkpoints = checkpoints_of(job, store, watcher)
    if overwrite:
        checkpoints.remove()
    norm, seed, rate = job.identity["norm"], job.identity["seed"], job.identity["train"]["learning_rate"]
    run = Run(job.task, job.setup, norm, seed, learning_rate=rate, checkpoints=checkpoints, every=every)
    return job.result(run.finish(Advance(watcher)))


class Advance(Listener):
    """Hands what a run tells on to a watcher."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher

    def step(self, done: int, loss: float, learning_rate: float) -> None:
        self.watcher.advance(done, loss=loss)

    def evaluating(self, split: str) -> None:
        self.watcher.doing(f"evaluating ({split})")

    def evaluated(self, done: int, figures: dict[str, float]) -> None:
        self.watcher.evaluated(figures)
