"""A small sweep of the learning rate, the same for every normaliser: what chose the recipes' rates, by a command.

Each rate is judged by the headline metric on the validation split, never on the split that comparisons report.
"""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rmsnorm.experiments.jobs import Job, training
from rmsnorm.experiments.learner import Setup
from rmsnorm.experiments.recipes.common import LABELS
from rmsnorm.experiments.runs import Record
from rmsnorm.experiments.task import Task, validation_label


def jobs(task: Task, setup: Setup, norms: Sequence[str], seeds: int, rates: Sequence[float]) -> list[Job]:
    """Every normaliser at every rate and seed; a rate that the recipe has anyway is the comparison's own run."""
    return [training(task, setup, norm, seed, rate) for seed in range(seeds) for rate in rates for norm in norms]


def summary(task: Task, norms: Sequence[str], rates: Sequence[float], records: Sequence[Record]) -> dict[str, Any]:
    """Mean over seeds of the last (or best, if the recipe takes that) validation figure; None where a run diverged."""
    metric = task.metrics[0]
    best = max if metric.higher_is_better else min
    table: dict[str, dict[str, float | None]] = {}
    for norm in norms:
        row: dict[str, float | None] = {}
        for rate in rates:
            runs = [
                record["result"]
                for record in records
                if record["identity"]["norm"] == norm and record["identity"]["train"]["learning_rate"] == rate
            ]
            columns = [result["curve"]["valid"][metric.key] for result in runs]
            ends = [best(column) if task.recipe.train.best else column[-1] for column in columns]
            finished = all(result["status"] == "finished" for result in runs)
            row[f"{rate:g}"] = statistics.fmean(ends) if finished else None
        table[norm] = row
    chosen = {}
    for norm, row in table.items():
        figures = {rate: value for rate, value in row.items() if value is not None}
        chosen[norm] = best(figures, key=lambda rate: figures[rate]) if figures else None
    label = validation_label(asdict(metric))
    return {"task": task.name, "metric": label, "form": metric.form, "valid": table, "best": chosen}


def show(found: dict[str, Any], console: Console) -> None:
    """Print the sweep; the best of each row is marked."""
    console.print(
        f"sweep of the learning rate · {found['task']} · {found['metric']}, validation", style="bold", highlight=False
    )
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("norm", no_wrap=True)
    for rate in next(iter(found["valid"].values())):
        table.add_column(rate, justify="right", no_wrap=True)
    for norm, row in found["valid"].items():
        cells = (
            "diverged" if value is None else f"{value:{found['form']}}" + (" *" if rate == found["best"][norm] else "")
            for rate, value in row.items()
        )
        table.add_row(LABELS[norm], *cells)
    console.print(table, highlight=False)
    console.print("* the best of its row", highlight=False)
