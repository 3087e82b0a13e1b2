"""``rmsnorm train`` from checked arguments to output: one run, on one process or all that torchrun started."""

import argparse
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from lightning_fabric import Fabric
from rich.console import Console

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments import interrupts, networks, tasks
from rmsnorm_lab.experiments.checkpoints import Checkpoints
from rmsnorm_lab.experiments.comparison import heading
from rmsnorm_lab.experiments.devices import setup_of
from rmsnorm_lab.experiments.jobs import Advance, TrainingJob, checkpoints_of, taken_over, training
from rmsnorm_lab.experiments.learner import Setup, fabric_for
from rmsnorm_lab.experiments.progress import ProgressReport, outcome
from rmsnorm_lab.experiments.recipes.common import Recipe
from rmsnorm_lab.experiments.record import RunRecord
from rmsnorm_lab.experiments.run import Listener, Run
from rmsnorm_lab.experiments.store import RunStore, as_json, opened

Result = TypeVar("Result")


def train(args: argparse.Namespace, recipe: Recipe, norm: str) -> int:
    """One run, on one process or all that torchrun started; returns the exit status: 1 if the run diverged."""
    setup = setup_of(args)
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
    progress.say(heading("train", task, setup) + f" · {norm} · seed {args.seed}{f' · {by}' if by else ''}")
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
    """The result of process 0, on every process. If it raises a UserError, all processes end."""
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


def _interrupted_training(checkpoints: Checkpoints, overwrite: bool) -> str:
    if not checkpoints.exist():
        return "interrupted before the first checkpoint: nothing was trained yet; the same command starts again"
    without = " without --overwrite" if overwrite else ""
    return (
        f"interrupted: the steps taken are kept in {checkpoints.folder}; the same command{without} goes on from there"
    )
