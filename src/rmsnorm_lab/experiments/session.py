"""The commands ``rmsnorm compare`` and ``rmsnorm train`` from checked arguments to output."""

import argparse
import contextlib
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from lightning_fabric import Fabric
from rich.console import Console

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments import devices, interrupts, networks, sweep, sweep_p, table, tasks
from rmsnorm_lab.experiments.checkpoints import Checkpoints
from rmsnorm_lab.experiments.compare import quality_row, time_row
from rmsnorm_lab.experiments.jobs import (
    Advance,
    Job,
    TrainingJob,
    checkpoints_of,
    do_all,
    taken_over,
    timings,
    training,
)
from rmsnorm_lab.experiments.learner import Setup, fabric_for
from rmsnorm_lab.experiments.plot import draw
from rmsnorm_lab.experiments.progress import ProgressReport, outcome
from rmsnorm_lab.experiments.recipes.common import Recipe
from rmsnorm_lab.experiments.record import Record, RunRecord, runs_of, timings_of
from rmsnorm_lab.experiments.runs import RunStore, as_json, opened
from rmsnorm_lab.experiments.table import Comparison, heading, show_quality, show_times
from rmsnorm_lab.experiments.task import Task
from rmsnorm_lab.experiments.train import Listener, Run

Result = TypeVar("Result")


def compare(args: argparse.Namespace, recipes: dict[str, Recipe], norms_of: dict[str, list[str]]) -> int:
    """Each task in turn; returns the exit status."""
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise UserError(f"compare works in one process; got {processes}. Give torchrun the command rmsnorm train.")
    setup = _setup(args)
    with interrupts.watched(), opened(args.out) as store:
        return _compare(args, recipes, norms_of, setup, store)


def _compare(
    args: argparse.Namespace, recipes: dict[str, Recipe], norms_of: dict[str, list[str]], setup: Setup, store: RunStore
) -> int:
    found: list[dict[str, Any]] = []
    # All are loaded, and their records read, before the first is trained: what is refused is said before hours of work.
    loaded = {name: tasks.load(name, args.data, recipe) for name, recipe in recipes.items()}
    of_task = {name: _planned(args, task, setup, norms_of[name]) for name, task in loaded.items()}
    if not args.overwrite:
        for planned in of_task.values():
            for job in planned:
                store.get(job.task.name, job.identity)
    for name in recipes:
        task, planned, norms = loaded.pop(name), of_task.pop(name), norms_of[name]
        records = _do(planned, store, args, heading(task, setup), partial(_trained, args, task, setup, norms, store))
        if records is None:
            return 130
        if args.sweep_p is not None:
            swept = sweep_p.rows(runs_of(records))
            found.append(sweep_p.as_json(task, swept))
            if not args.json:
                sweep_p.show(task, swept, _output())
        elif args.sweep_lr:
            found.append(sweep.summary(task, norms, args.sweep_lr, runs_of(records)))
            if not args.json:
                sweep.show(found[-1], _output())
        else:
            comparison = _compared(task, setup, norms, records, store.folder)
            found.append(table.as_json(comparison))
            if not args.json:
                show_times(comparison, _output())
    if args.json:
        print(json.dumps(found[0] if len(found) == 1 else found, indent=2, allow_nan=False))
    return 0


def _planned(args: argparse.Namespace, task: Task, setup: Setup, norms: list[str]) -> list[Job]:
    if args.sweep_p is not None:
        return list(sweep_p.jobs(task, setup, args.seeds, args.sweep_p or sweep_p.PAPER))
    if args.sweep_lr:
        return list(sweep.jobs(task, setup, norms, args.seeds, args.sweep_lr))
    # Seed by seed, so that what an interruption leaves is a comparison too; times after what was asked for.
    runs: list[Job] = [training(task, setup, norm, seed) for seed in range(args.seeds) for norm in norms]
    return runs if args.timing_rounds == 0 else [*runs, *timings(task, setup, norms)]


def _trained(
    args: argparse.Namespace, task: Task, setup: Setup, norms: list[str], store: RunStore, records: list[Record]
) -> None:
    """The last run of a comparison is done, and its timings are not: the first table can be read."""
    if not (args.sweep_lr or args.sweep_p is not None or args.json):
        show_quality(_compared(task, setup, norms, records, store.folder), _output())


def _do(
    planned: list[Job], store: RunStore, args: argparse.Namespace, title: str, trained: Callable[[list[Record]], None]
) -> list[Record] | None:
    """The record of every job; None when interrupted. ``trained`` is told of the runs' records once they are there."""
    console = Console(stderr=True)
    console.print(title, highlight=False, markup=False, soft_wrap=True)
    records: list[Record] = []
    runs = sum(isinstance(job, TrainingJob) for job in planned)
    progress = ProgressReport(console, len(planned))
    try:
        with progress:
            for record in do_all(planned, store, args.overwrite, progress, args.checkpoint_every):
                records.append(record)
                if len(records) == runs:
                    with progress.paused():
                        trained(list(records))
    except KeyboardInterrupt:
        progress.say(_interrupted(planned, len(records), args))
        return None
    if progress.kept:
        progress.say(
            f"{progress.kept} of {len(planned)} were recorded in {args.out} already (--overwrite does them again)"
        )
    return records


def _compared(task: Task, setup: Setup, norms: list[str], records: list[Record], out: Path) -> Comparison:
    timed = {record.identity.kernels: record for record in timings_of(records)}
    runs = {norm: [record for record in runs_of(records) if record.identity.norm == norm] for norm in norms}
    quality = [quality_row(norm, runs[norm]) for norm in norms]
    times = {kernels: [time_row(norm, record) for norm in norms] for kernels, record in timed.items()}
    plot = out / f"{task.name}.png"
    draw(plot, heading(task, setup), task, quality, times.get(setup.kernels), runs)
    return Comparison(task, setup, quality, times, records, str(plot))


def train(args: argparse.Namespace, recipe: Recipe, norm: str) -> int:
    """One run, on one process or all that torchrun started; returns the exit status: 1 if the run diverged."""
    setup = _setup(args)
    fabric = fabric_for(setup, args.strategy)
    with interrupts.watched(), contextlib.ExitStack() as stack:
        store = _by_the_first(fabric, lambda: stack.enter_context(opened(args.out)))
        return _train(args, recipe, norm, setup, fabric, store)


def _train(args: argparse.Namespace, recipe: Recipe, norm: str, setup: Setup, fabric: Fabric, store: RunStore) -> int:
    first = fabric.global_rank == 0
    console = Console(stderr=True, quiet=not first)
    task = tasks.load(args.task, args.data, recipe)
    by = f"{args.strategy}{fabric.world_size}" if fabric.world_size > 1 else None
    job = training(task, setup, norm, args.seed, processes=by)
    if not args.overwrite:
        by = _by_the_first(fabric, lambda: taken_over(job, store))
        job = training(task, setup, norm, args.seed, processes=by)
    progress = ProgressReport(console, 1, evaluations=True)
    progress.say(
        heading(task, setup).replace("compare", "train", 1) + f" · {norm} · seed {args.seed}{f' · {by}' if by else ''}"
    )
    checkpoints = checkpoints_of(job, store, progress)
    record = _by_the_first(fabric, lambda: None if args.overwrite else _usable(job, store))
    if record is None:
        if args.overwrite and first:
            checkpoints.remove()
        elif first and store.get(task.name, job.identity):
            progress.say("recorded, but its network is missing or damaged: what no checkpoint holds is trained again")
        fabric.barrier()
        try:
            with progress:
                progress.plan([job])
                progress.begin(job)
                run = Run(
                    task, setup, norm, args.seed, fabric=fabric, checkpoints=checkpoints, every=args.checkpoint_every
                )
                with _listener(args, job, progress, first) as listener:
                    result = run.finish(listener)
                weights = run.weights() if result.status == "finished" else None
        except KeyboardInterrupt:
            progress.say(_interrupted_training(checkpoints, args.overwrite))
            return 130
        if first and weights is not None:  # before the record: a run that is recorded can be used
            networks.keep(store.folder / f"{job.stem}.jsonl", task.sizes, weights, task.files())
        if first:
            record = job.record(result)
            store.put(record)
    else:
        without = "; no logs are written" if args.tensorboard else ""
        progress.say(f"recorded in {args.out} already (--overwrite does it again){without}")
    if first and record is not None:
        print(json.dumps(as_json(record), indent=2) if args.json else _said(job, record, args.out))
    status = result.status if record is None else record.result.status
    return 1 if status == "diverged" else 0


def _by_the_first(fabric: Fabric, work: Callable[[], Result]) -> Result:
    """What process 0 comes to, on every process. If the user has to mend something, it says so and all of them end."""
    found: Result | None = None
    error: UserError | None = None
    if fabric.global_rank == 0:
        try:
            found = work()
        except UserError as raised:
            error = raised
    found, failed = fabric.broadcast((found, error is not None))
    if error is not None:
        raise error
    if failed:
        raise SystemExit(2)
    return cast(Result, found)


def _usable(job: TrainingJob, store: RunStore) -> RunRecord | None:
    """The job's record, if its network can be used. Of a comparison's record it cannot: it is not there."""
    record = store.get(job.task.name, job.identity)
    if record is None or not record.result.finished:
        return record
    path = store.folder / f"{job.stem}.jsonl"
    try:
        networks.files_of(path, networks.read(path))
    except UserError:
        return None
    return record


@contextlib.contextmanager
def _listener(args: argparse.Namespace, job: TrainingJob, progress: ProgressReport, first: bool) -> Any:
    beside: Listener = Advance(progress)
    if not (args.tensorboard and first):
        yield beside
        return
    from rmsnorm_lab.experiments.tensorboard import Log

    with Log(args.out / "tensorboard" / job.stem, beside) as log:
        yield log


def _said(job: TrainingJob, record: RunRecord, out: Path) -> str:
    lines, quality = [outcome(job, record)], record.result.quality or {}
    for metric in job.task.metrics[1:] if quality else ():
        lines.append(f"{quality[metric.key]:{metric.form}} {metric.label}".replace("\n", " "))
    record_path = out / f"{job.stem}.jsonl"
    lines.append(f"record: {record_path}")
    if quality:
        lines.append(f"network: {networks.path_of(record_path)}")
    return "\n".join(lines)


def _output() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=120)  # a file or a pipe has no width to obey


def _setup(args: argparse.Namespace) -> Setup:
    devices.check(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    return Setup(kernels=args.kernels, device=args.device, precision=args.precision)


def _interrupted_training(checkpoints: Checkpoints, overwrite: bool) -> str:
    if not checkpoints.exist():
        return "interrupted before the first checkpoint: nothing was trained yet; the same command starts again"
    without = " without --overwrite" if overwrite else ""
    return (
        f"interrupted: the steps taken are kept in {checkpoints.folder}; the same command{without} goes on from there"
    )


def _interrupted(planned: list[Job], finished: int, args: argparse.Namespace) -> str:
    titles = "; ".join(job.title for job in planned[:finished]) or "nothing"
    without = " without --overwrite" if args.overwrite else ""
    return (
        f"interrupted: {finished} of {len(planned)} finished and kept in {args.out} ({titles}). "
        f"The same command{without} goes on from there."
    )
