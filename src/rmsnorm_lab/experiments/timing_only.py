"""``rmsnorm compare --timing-only``: the step times of a comparison without its trainings.

The paper's own sizes need neither the official data nor a GPU then: without ``--data`` their inputs are drawn at random
(data/drawn.py). The other sizes take their stand-in, as always.
"""

import argparse
from collections.abc import Sequence
from copy import copy
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console

from rmsnorm_lab.experiments import norms, tasks
from rmsnorm_lab.experiments.comparison import SETTINGS, about_data, about_times, source_of, time_table
from rmsnorm_lab.experiments.data.official import is_drawn
from rmsnorm_lab.experiments.jobs import TimingJob, timings
from rmsnorm_lab.experiments.learner import Setup
from rmsnorm_lab.experiments.paper import PUBLISHED, Published
from rmsnorm_lab.experiments.recipes.common import Recipe
from rmsnorm_lab.experiments.record import TimingRecord
from rmsnorm_lab.experiments.summary import time_row
from rmsnorm_lab.experiments.task import Task

SECONDS = 70.0
"""Of each of the three settings, where the recipe does not say."""


def changed(recipe: Recipe, rounds: int | None) -> Recipe:
    """The recipe with a time for the rounds, and with one of the parts of a batch that is taken in parts.

    A part is a step's work without what it repeats: 25,000 tokens take minutes on two cores.

    Args:
        rounds: this number of them, whatever time they take.
    """
    timing, train = recipe.timing, recipe.train
    timing = replace(timing, seconds=timing.seconds or SECONDS)
    if rounds is not None:
        timing = replace(timing, rounds=rounds, fewest=rounds)
    train = replace(train, batch=max(train.batch // train.accumulate, 1), accumulate=1)
    return replace(recipe, timing=timing, train=train)


def load(args: argparse.Namespace, name: str, recipe: Recipe) -> Task:
    """The task on ``--data``, on drawn inputs in the paper's size, or on its stand-in."""
    if args.data is None and recipe.size == "paper":
        return tasks.drawn(name, recipe)
    return tasks.load(name, args.data, recipe)


def jobs(task: Task, setup: Setup, timed: Sequence[str]) -> list[TimingJob]:
    """The three settings. With kernels a recurrence has torch's biases: the layers that have kernels have these."""
    found = timings(task, setup, timed)
    if getattr(task.recipe.model, "biases", "alike") == "alike":
        return found
    other = copy(task)
    other.recipe = replace(task.recipe, model=replace(task.recipe.model, biases="alike"))
    return [
        job
        if job.setup.kernels == "unfused"
        else replace(job, task=other, identity=replace(job.identity, biases="alike"))
        for job in found
    ]


def heading(task: Task, setup: Setup) -> str:
    """The line above what is printed of a task."""
    device = "" if setup.device == "cpu" else f" · {setup.device}"
    return f"time {task.name} · {source_of(task)} · {task.recipe.size} size · nothing is trained{device}"


def show(task: Task, setup: Setup, records: Sequence[TimingRecord], console: Console) -> None:
    """Print the tables and the notes below them."""
    console.print(heading(task, setup), style="bold", highlight=False, markup=False, soft_wrap=True)
    paper = PUBLISHED.get(task.name, Published(""))
    for record in records:
        rows = [time_row(norm, record) for norm in record.identity.norms]
        published = paper if record.identity.kernels == "unfused" else Published("")
        time_table(SETTINGS[record.identity.kernels], rows, published, task.recipe.size).show(console)
    for note in notes(task, setup, records):
        console.print(note, highlight=False, markup=False, soft_wrap=True)


def notes(task: Task, setup: Setup, records: Sequence[TimingRecord]) -> list[str]:
    """One line each."""
    about = [] if is_drawn(task.source.content) else [about_data(task)]
    found = [f"{source_of(task)}; nothing was trained", *about, _batch(task)]
    if (timing := task.recipe.timing).seconds is not None:
        as_asked = f"{timing.rounds} in each setting, whatever time they take"
        in_time = f"for {timing.seconds:g} s in each setting, at least {timing.fewest}, at most {timing.rounds}"
        found.append(f"rounds: {as_asked if timing.fewest == timing.rounds else in_time}")
    if any(record.identity.biases for record in records):
        found.append(
            "biases of recurrences: with kernels torch's, alike for every norm, because the layers that have kernels "
            "have these; unfused the paper's"
        )
    for norm, own in (records[0].norm_sources or {}).items():
        found.append(f"{norms.label(norm)}: {own}, the same module with all kernels")
    found += about_times(records, setup)
    if task.name in PUBLISHED:
        found.append(f"paper: {PUBLISHED[task.name].where}; seconds: of {PUBLISHED[task.name].seconds_of}")
    return found


def _batch(task: Task) -> str:
    batch, own = task.recipe.train.batch, tasks.recipe(task.name, task.recipe.size).train
    unit = "tokens" if getattr(task.recipe.data, "by_tokens", False) else tasks.EXAMPLES[task.name]
    if context := getattr(task.recipe.model, "context", None):
        unit = f"rows of {context:,} {unit}"
    part = f", one of the {own.accumulate} parts of the recipe's {own.batch:,}" if own.accumulate > 1 else ""
    return f"a step: {batch:,} {unit}{part if batch == own.batch // own.accumulate else ''}"


def as_json(task: Task, setup: Setup, records: Sequence[TimingRecord]) -> dict[str, Any]:
    """The same for a program."""
    return {
        "task": task.name,
        "timing_only": True,
        "setup": {name: value for name, value in asdict(setup).items() if name != "kernels"},
        "recipe": asdict(task.recipe),
        "source": asdict(task.source),
        "paper": asdict(PUBLISHED[task.name]) if task.name in PUBLISHED else None,
        "machine": asdict(records[0].machine),
        "time": {
            record.identity.kernels: {
                "rounds": record.result.rounds,
                "biases": record.identity.biases,
                "memory": record.result.memory,
                "rows": [asdict(time_row(norm, record)) for norm in record.identity.norms],
            }
            for record in records
        },
        "notes": notes(task, setup, records),
    }
