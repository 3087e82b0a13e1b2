"""The commands ``rmsnorm compare`` and ``rmsnorm train`` from checked arguments to output."""

import argparse
import contextlib
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from rmsnorm.errors import UserError
from rmsnorm.experiments import sweep, sweep_p, tasks
from rmsnorm.experiments.compare import quality_row, time_row
from rmsnorm.experiments.jobs import Advance, Job, checkpoints_of, do_all, machine, timings, training
from rmsnorm.experiments.learner import Setup, fabric_for
from rmsnorm.experiments.plot import draw
from rmsnorm.experiments.progress import ProgressReport, outcome
from rmsnorm.experiments.recipes.common import Recipe
from rmsnorm.experiments.runs import Record, RunStore
from rmsnorm.experiments.table import Comparison, as_json, heading, show
from rmsnorm.experiments.task import Task
from rmsnorm.experiments.train import Listener, Run
from rmsnorm.files import write_whole


def compare(args: argparse.Namespace, recipes: dict[str, Recipe], norms_of: dict[str, list[str]]) -> int:
    """Each task in turn; returns the exit status."""
    setup = _setup(args)
    found: list[dict[str, Any]] = []
    data = Path(args.data) if args.data else None
    # All are loaded before the first is trained: what one of them refuses is said before hours of work.
    loaded = {name: tasks.load(name, data, recipe) for name, recipe in recipes.items()}
    for name, recipe in recipes.items():
        task, norms = loaded.pop(name), norms_of[name]
        if args.sweep_p is not None:
            planned = sweep_p.jobs(name, data, recipe, setup, args.seeds, args.sweep_p or sweep_p.PAPER)
        elif args.sweep_lr:
            planned = sweep.jobs(task, setup, norms, args.seeds, args.sweep_lr)
        else:
            planned = [] if args.timing_rounds == 0 else timings(task, setup, norms)
            # Seed by seed, so that what an interruption leaves is a comparison too.
            planned += [training(task, setup, norm, seed) for seed in range(args.seeds) for norm in norms]
        records = _do(planned, args, heading(task, setup))
        if records is None:
            return 130
        if args.sweep_p is not None:
            swept = sweep_p.rows(records)
            found.append(sweep_p.as_json(task, swept))
            if not args.json:
                sweep_p.show(task, swept, _output())
        elif args.sweep_lr:
            found.append(sweep.summary(task, norms, args.sweep_lr, records))
            if not args.json:
                sweep.show(found[-1], _output())
        else:
            comparison = _compared(task, setup, norms, records, Path(args.out))
            found.append(as_json(comparison))
            if not args.json:
                show(comparison, _output())
    if args.json:
        print(json.dumps(found[0] if len(found) == 1 else found, indent=2, allow_nan=False))
    return 0


def _do(planned: list[Job], args: argparse.Namespace, title: str) -> list[Record] | None:
    """The record of every job; None when interrupted."""
    store = RunStore(Path(args.out), [job.file_name for job in planned] if args.overwrite else [])
    console = Console(stderr=True)
    console.print(title, highlight=False, soft_wrap=True)
    records: list[Record] = []
    try:
        with ProgressReport(console, planned) as progress:
            for record in do_all(planned, store, args.overwrite, progress):
                records.append(record)
    except KeyboardInterrupt:
        progress.say(_interrupted(planned, len(records), args))
        return None
    if progress.kept:
        progress.say(
            f"{progress.kept} of {len(planned)} were recorded in {args.out} already (--overwrite does them again)"
        )
    return records


def _compared(task: Task, setup: Setup, norms: list[str], records: list[Record], out: Path) -> Comparison:
    timed = {record["identity"]["kernels"]: record for record in records if record["kind"] == "timing"}
    runs = {
        norm: [record for record in records if record["kind"] == "run" and record["identity"]["norm"] == norm]
        for norm in norms
    }
    quality = [quality_row(norm, runs[norm]) for norm in norms]
    times = {kernels: [time_row(norm, record) for norm in norms] for kernels, record in timed.items()}
    plot = out / f"{task.name}.png"
    draw(plot, heading(task, setup), task, quality, times.get(setup.kernels), runs)
    return Comparison(task, setup, quality, times, records, str(plot))


def train(args: argparse.Namespace, recipe: Recipe, norm: str) -> int:
    """One run, on one process or all that torchrun started; returns the exit status."""
    setup = _setup(args)
    fabric = fabric_for(setup, args.strategy)
    first = fabric.global_rank == 0
    console = Console(stderr=True, quiet=not first)
    task = tasks.load(args.task, Path(args.data) if args.data else None, recipe)
    job = training(task, setup, norm, args.seed)
    store = RunStore(Path(args.out), [job.file_name] if args.overwrite else [])
    progress = ProgressReport(console, [job])
    progress.say(heading(task, setup).replace("compare", "train", 1) + f" · {norm} · seed {args.seed}")
    checkpoints = checkpoints_of(job, store, progress)
    record = fabric.broadcast(None if args.overwrite else store.get(task.name, job.kind, job.identity))
    if record is None:
        if args.overwrite and first:
            checkpoints.remove()
        fabric.barrier()
        try:
            with progress:
                progress.begin(job)
                run = Run(
                    task, setup, norm, args.seed, fabric=fabric, checkpoints=checkpoints, every=args.checkpoint_every
                )
                with _listener(args, job, progress, first) as listener:
                    result = run.finish(listener)
        except KeyboardInterrupt:
            progress.say(f"interrupted: the same command goes on from the last checkpoint in {checkpoints.folder}")
            return 130
        if first:
            record = store.put(task.name, job.kind, job.identity, machine=machine(), result=job.result(result))
            for name, content in task.files().items():
                write_whole(store.folder / f"{checkpoints.stem}.{name}", content)
    else:
        progress.say(f"recorded in {args.out} already (--overwrite does it again)")
    if first and record is not None:
        print(json.dumps(record, indent=2) if args.json else _said(job, record, Path(args.out)))
    return 0


@contextlib.contextmanager
def _listener(args: argparse.Namespace, job: Job, progress: ProgressReport, first: bool) -> Any:
    listeners: list[Listener] = [Advance(progress, job.task.recipe.train.steps)]
    if not (args.tensorboard and first):
        yield listeners[0]
        return
    from rmsnorm.experiments.tensorboard import Log

    with Log(Path(args.out) / "tensorboard" / job.file_name.removesuffix(".jsonl"), listeners[0]) as log:
        yield log


def _said(job: Job, record: Record, out: Path) -> str:
    lines = [outcome(job, record)]
    for metric in job.task.metrics[1:] if record["result"]["quality"] else ():
        value = record["result"]["quality"][metric.key]
        lines.append(f"{value:{metric.form}} {metric.label}".replace("\n", " "))
    return "\n".join([*lines, f"record: {out / job.file_name}"])


def _output() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=120)  # a file or a pipe has no width to obey


def _setup(args: argparse.Namespace) -> Setup:
    _check_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    return Setup(kernels=args.kernels, device=args.device, precision=args.precision)


def _check_device(name: str) -> None:
    """Put one number on it: the surest sign that torch can use a device."""
    try:
        torch.zeros(1, device=name) + 1
        if torch.device(name).type == "meta":
            raise RuntimeError("it holds no numbers")
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises each of these for one
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"--device must be one that this torch can use; got {name!r}: {reason}. Pass --device cpu."
        ) from None


def _interrupted(planned: list[Job], finished: int, args: argparse.Namespace) -> str:
    titles = "; ".join(job.title for job in planned[:finished]) or "nothing"
    without = " without --overwrite" if args.overwrite else ""
    return (
        f"interrupted: {finished} of {len(planned)} finished and kept in {args.out} ({titles}). "
        f"The same command{without} goes on from there."
    )
