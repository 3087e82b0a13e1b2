"""The jobs of a comparison: what identifies them, and how those without a record are run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from rmsnorm_lab.experiments import norms, profile, step_budget, step_times
from rmsnorm_lab.experiments.checkpoints import Checkpoints, rename, stems
from rmsnorm_lab.experiments.learner import Setup
from rmsnorm_lab.experiments.memory import give_back, new_objects_only
from rmsnorm_lab.experiments.recipes.common import KERNELS
from rmsnorm_lab.experiments.record import (
    Machine,
    Record,
    RunIdentity,
    RunRecord,
    RunResult,
    TimingIdentity,
    TimingRecord,
    TimingResult,
)
from rmsnorm_lab.experiments.run import Listener, Run
from rmsnorm_lab.experiments.store import RunStore, file_name
from rmsnorm_lab.experiments.task import Task
from rmsnorm_lab.plain import to_plain


@dataclass(frozen=True)
class TrainingJob:
    """The training of one normaliser with one seed."""

    task: Task
    setup: Setup
    identity: RunIdentity

    @property
    def stem(self) -> str:
        """The common beginning of the names of this run's files."""
        return file_name(self.task.name, self.identity).removesuffix(".jsonl")

    @property
    def units(self) -> int:
        """The steps that it takes, of one normaliser each: its weight in the time that is left."""
        return self.task.recipe.train.steps

    @property
    def title(self) -> str:
        norm, rate, p = self.identity.norm, self.identity.train.learning_rate, self.identity.p
        share = "" if p is None else f" of {100 * p:g} %"
        unusual = "" if rate == self.task.recipe.learning_rate(norm) else f", learning rate {rate:g}"
        return f"{norms.label(norm)}{share}, seed {self.identity.seed}{unusual}"

    def record(self, result: RunResult) -> RunRecord:
        """The record of the result, made on this machine."""
        task = self.task
        return RunRecord(
            task=task.name,
            source_name=task.source.name,
            machine=Machine.here(),
            identity=self.identity,
            result=result,
            norm_source=norms.own_source(self.identity.norm),
        )


@dataclass(frozen=True)
class TimingJob:
    """The timing of several normalisers in one setting."""

    task: Task
    setup: Setup
    identity: TimingIdentity

    @property
    def units(self) -> int:
        """The steps that it takes, of one normaliser each, or thousandths: its weight in the time that is left."""
        if self.within_seconds:
            return step_budget.WHOLE
        rounds = self.task.recipe.timing.warmup_rounds + self.task.recipe.timing.rounds
        return len(self.identity.norms) * (rounds + profile.WARM_UP + profile.STEPS)

    @property
    def within_seconds(self) -> bool:
        """Whether its rounds end with a time, so that the number of its steps is not known before."""
        return self.identity.timing.seconds is not None

    @property
    def title(self) -> str:
        return f"step times, {self.setup.kernels}"

    def record(self, result: TimingResult) -> TimingRecord:
        """The record of the result, made on this machine."""
        task = self.task
        own = {norm: source for norm in self.identity.norms if (source := norms.own_source(norm))}
        return TimingRecord(
            task=task.name,
            source_name=task.source.name,
            machine=Machine.here(),
            identity=self.identity,
            result=result,
            norm_sources=own or None,
        )


Job = TrainingJob | TimingJob


def training(
    task: Task,
    setup: Setup,
    norm: str,
    seed: int,
    learning_rate: float | None = None,
    processes: str | None = None,
) -> TrainingJob:
    """With the recipe's learning rate, or another. Quality does not depend on the machine, except for rounding.

    ``processes`` says by which a run was trained if by several ("ddp2"): BatchNorm's statistics and the draws of
    dropout and noise are those of each.
    """
    identity = RunIdentity(
        **_setting(task, setup),
        kernels=setup.kernels,
        norm=norm,
        seed=seed,
        p=task.recipe.p if norms.entry(norm).takes_p else None,
        train=replace(task.recipe.train, learning_rate=learning_rate or task.recipe.learning_rate(norm)),
        processes=processes,
    )
    return TrainingJob(task, setup, identity)


def timings(task: Task, setup: Setup, timed: Sequence[str]) -> list[TimingJob]:
    """The normalisers ``timed`` in each of the three settings, which are never mixed."""
    found = []
    for kernels in KERNELS:
        identity = TimingIdentity(
            **_setting(task, setup),
            kernels=kernels,
            norms=tuple(timed),
            p=task.recipe.p,
            timing=task.recipe.timing,
            batch=task.recipe.train.batch,
            accumulate=task.recipe.train.accumulate,
            machine=Machine.here(),
        )
        found.append(TimingJob(task, replace(setup, kernels=kernels), identity))
    return found


def _setting(task: Task, setup: Setup) -> dict[str, Any]:
    """The fields of record.Setting."""
    recipe = task.recipe
    return {
        "device": setup.device,
        "precision": setup.precision,
        "source": task.source.content,
        "size": recipe.size,
        "model": to_plain(recipe.model),
        "data": to_plain(recipe.data),
    }


class Watcher(Protocol):
    """Called as the work proceeds."""

    def plan(self, todo: Sequence[Job]) -> None: ...
    def begin(self, job: Job) -> None: ...
    def advance(self, done: int, taken: int = 1, loss: float | None = None) -> None: ...
    def doing(self, what: str) -> None: ...
    def evaluated(self, figures: dict[str, float]) -> None: ...
    def end(self, job: Job, record: Record, kept: bool) -> None: ...
    def say(self, message: str) -> None: ...


def do_all(
    planned: Sequence[Job], store: RunStore, overwrite: bool, watcher: Watcher, every: int | None = None
) -> Iterator[Record]:
    """Run the jobs without a record (with ``overwrite`` all jobs); yield the record of every job in order.

    ``every`` is how many steps lie between checkpoints (None: one at each evaluation).
    """
    found = [None if overwrite else store.get(job.task.name, job.identity) for job in planned]
    watcher.plan([job for job, record in zip(planned, found, strict=True) if record is None])
    with new_objects_only():
        for job, record in zip(planned, found, strict=True):
            kept = record is not None
            if record is None:
                watcher.begin(job)
                if isinstance(job, TimingJob):
                    record = job.record(_time(job, watcher))
                    store.put(record)
                else:
                    record = job.record(_train(job, store, overwrite, watcher, every))
                    store.put(record)
                    checkpoints_of(job, store, watcher).remove()
                give_back()
            watcher.end(job, record, kept)
            yield record


def taken_over(job: TrainingJob, store: RunStore) -> str | None:
    """The processes that trained the run: the job's own, unless others have begun it and not finished it.

    Their checkpoints become the run's, and its record says by whom it was trained: "fsdp2-then-1".
    """
    mine, folder = job.identity.processes, store.folder / "checkpoints"
    base = replace(job, identity=replace(job.identity, processes=None)).stem
    begun = stems(folder, base)
    if store.get(job.task.name, job.identity) or job.stem in begun:
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


def checkpoints_of(job: TrainingJob, store: RunStore, watcher: Watcher) -> Checkpoints:
    return Checkpoints(store.folder / "checkpoints", job.stem, watcher.say)


def _time(job: TimingJob, watcher: Watcher) -> TimingResult:
    names = list(job.identity.norms)
    if job.within_seconds:
        return step_budget.measure(job.task, job.setup, names, watcher)
    timed = job.units - len(names) * (profile.WARM_UP + profile.STEPS)
    milliseconds = step_times.measure(
        job.task, job.setup, names, lambda done, total: watcher.advance(timed * done // total, len(names))
    )
    give_back()
    profiles = {}
    for norm in names:
        watcher.doing(f"profiling {norms.label(norm)}")
        profiles[norm] = profile.steps(job.task, job.setup, norm)
        timed += profile.WARM_UP + profile.STEPS
        watcher.advance(timed, profile.WARM_UP + profile.STEPS)
        give_back()
    return TimingResult(
        milliseconds=milliseconds,
        profiled_share={norm: found.norm_share for norm, found in profiles.items()},
        peak_memory={norm: found.peak_memory for norm, found in profiles.items()},
    )


def _train(job: TrainingJob, store: RunStore, overwrite: bool, watcher: Watcher, every: int | None) -> RunResult:
    checkpoints = checkpoints_of(job, store, watcher)
    if overwrite:
        checkpoints.remove()
    norm, seed, rate = job.identity.norm, job.identity.seed, job.identity.train.learning_rate
    run = Run(job.task, job.setup, norm, seed, learning_rate=rate, checkpoints=checkpoints, every=every)
    return run.finish(Advance(watcher))


class Advance(Listener):
    """Passes the events of a run on to a watcher."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher

    def step(self, done: int, loss: float, learning_rate: float) -> None:
        self.watcher.advance(done, loss=loss)

    def evaluating(self, split: str) -> None:
        self.watcher.doing(f"evaluating ({split})")

    def evaluated(self, done: int, figures: dict[str, float]) -> None:
        self.watcher.evaluated(figures)
