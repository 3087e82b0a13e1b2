"""``rmsnorm compare`` from checked arguments to output: plan, run and show."""

import argparse
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments import comparison, interrupts, p_sweep, rate_sweep, tasks, timing_only
from rmsnorm_lab.experiments.comparison import Comparison, heading, show_quality, show_times
from rmsnorm_lab.experiments.curves import draw
from rmsnorm_lab.experiments.devices import setup_of
from rmsnorm_lab.experiments.jobs import Job, TrainingJob, do_all, timings, training
from rmsnorm_lab.experiments.learner import Setup
from rmsnorm_lab.experiments.norms import own_source
from rmsnorm_lab.experiments.progress import ProgressReport
from rmsnorm_lab.experiments.recipes.common import Recipe
from rmsnorm_lab.experiments.record import Record, runs_of, timings_of
from rmsnorm_lab.experiments.store import RunStore, opened
from rmsnorm_lab.experiments.summary import quality_row, time_row
from rmsnorm_lab.experiments.task import Task


def compare(args: argparse.Namespace, recipes: dict[str, Recipe], norms_of: dict[str, list[str]]) -> int:
    """Compare each task; return the exit status."""
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise UserError(f"compare works in one process; got {processes}. Give torchrun the command rmsnorm train.")
    setup = setup_of(args)
    with interrupts.watched(), opened(args.out) as store:
        return _compare(args, recipes, norms_of, setup, store)


def _compare(
    args: argparse.Namespace, recipes: dict[str, Recipe], norms_of: dict[str, list[str]], setup: Setup, store: RunStore
) -> int:
    found: list[dict[str, Any]] = []
    # Load all data and read all records before the first training, so that an error does not come after hours of work.
    if args.timing_only:
        recipes = {name: timing_only.changed(recipe, args.timing_rounds) for name, recipe in recipes.items()}
        loaded = {name: timing_only.load(args, name, recipe) for name, recipe in recipes.items()}
    else:
        loaded = {name: tasks.load(name, args.data, recipe) for name, recipe in recipes.items()}
    for name, task in loaded.items():
        for norm in filter(own_source, norms_of[name]):
            task.model(norm, setup.kernels)  # checks that it takes the network's widths
    of_task = {name: _planned(args, task, setup, norms_of[name]) for name, task in loaded.items()}
    if not args.overwrite:
        for planned in of_task.values():
            for job in planned:
                store.get(job.task.name, job.identity)
    for name in recipes:
        task, planned, norms = loaded.pop(name), of_task.pop(name), norms_of[name]
        title = timing_only.heading(task, setup) if args.timing_only else heading("compare", task, setup)
        records = do(planned, store, args, title, partial(_trained, args, task, setup, norms, store))
        if records is None:
            return 130
        if args.timing_only:
            timed = timings_of(records)
            found.append(timing_only.as_json(task, setup, timed))
            if not args.json:
                timing_only.show(task, setup, timed, output())
        elif args.sweep_p is not None:
            swept = p_sweep.rows(runs_of(records))
            found.append(p_sweep.as_json(task, swept))
            if not args.json:
                p_sweep.show(task, swept, output())
        elif args.sweep_lr:
            of_rates = rate_sweep.swept({n: [r for r in runs_of(records) if r.identity.norm == n] for n in norms})
            found.append(rate_sweep.as_json(task, of_rates))
            if not args.json:
                rate_sweep.show(task, of_rates, output())
        else:
            whole = compared(task, setup, norms, records, store.folder)
            found.append(comparison.as_json(whole))
            if not args.json:
                show_times(whole, output())
    if args.json:
        print(json.dumps(found[0] if len(found) == 1 else found, indent=2, allow_nan=False))
    return 0


def _planned(args: argparse.Namespace, task: Task, setup: Setup, norms: list[str]) -> list[Job]:
    if args.timing_only:
        return list(timing_only.jobs(task, setup, norms))
    if args.sweep_p is not None:
        return list(p_sweep.jobs(task, setup, args.seeds, args.sweep_p or p_sweep.PAPER_P))
    if args.sweep_lr:
        return list(rate_sweep.jobs(task, setup, norms, args.seeds, args.sweep_lr))
    # Seed by seed, so that an interrupted run still leaves a comparison. Times come last.
    runs: list[Job] = [training(task, setup, norm, seed) for seed in range(args.seeds) for norm in norms]
    return runs if args.timing_rounds == 0 else [*runs, *timings(task, setup, norms)]


def _trained(
    args: argparse.Namespace, task: Task, setup: Setup, norms: list[str], store: RunStore, records: list[Record]
) -> None:
    """The last run of a comparison is done and its timings are not: the first table can be printed."""
    if not (args.sweep_lr or args.sweep_p is not None or args.json):
        show_quality(compared(task, setup, norms, records, store.folder), output())


def do(
    planned: list[Job], store: RunStore, args: argparse.Namespace, title: str, trained: Callable[[list[Record]], None]
) -> list[Record] | None:
    """The record of every job; None if interrupted. ``trained`` is called with the runs' records once they exist."""
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


def compared(task: Task, setup: Setup, norms: list[str], records: list[Record], out: Path) -> Comparison:
    timed = {record.identity.kernels: record for record in timings_of(records)}
    runs = {norm: [record for record in runs_of(records) if record.identity.norm == norm] for norm in norms}
    quality = [quality_row(norm, runs[norm]) for norm in norms]
    times = {kernels: [time_row(norm, record) for norm in norms] for kernels, record in timed.items()}
    plot = out / f"{task.name}.png"
    draw(plot, heading("compare", task, setup), task, quality, times.get(setup.kernels), runs)
    return Comparison(task, setup, quality, times, records, str(plot))


def output() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=120)  # a file or a pipe has no width to obey


def _interrupted(planned: list[Job], finished: int, args: argparse.Namespace) -> str:
    titles = "; ".join(job.title for job in planned[:finished]) or "nothing"
    without = " without --overwrite" if args.overwrite else ""
    return (
        f"interrupted: {finished} of {len(planned)} finished and kept in {args.out} ({titles}). "
        f"The same command{without} goes on from there."
    )
