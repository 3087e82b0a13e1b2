"""The sweep of pRMSNorm's p: the paper's Fig. 3, on the test split, because p is a result here and not a choice."""

import copy
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console

from rmsnorm_lab.experiments.comparison import quality_cell, source_of
from rmsnorm_lab.experiments.jobs import Job, training
from rmsnorm_lab.experiments.learner import Setup
from rmsnorm_lab.experiments.record import RunRecord
from rmsnorm_lab.experiments.summary import QualityRow, quality_row
from rmsnorm_lab.experiments.task import Task
from rmsnorm_lab.table import Row, Table

PAPER_P = (0.0625, *(tenth / 10 for tenth in range(1, 11)))
"""The values in the paper's Fig. 3, and the p of its tables."""


def jobs(task: Task, setup: Setup, seeds: int, values: Sequence[float]) -> list[Job]:
    """pRMSNorm with every p, seed by seed. The p that the recipe has anyway is the comparison's own run."""
    tasks = [with_p(task, p) for p in sorted(set(values))]
    return [training(each, setup, "prms", seed) for seed in range(seeds) for each in tasks]


def with_p(task: Task, p: float) -> Task:
    """The task with another p, on the same data in memory."""
    other = copy.copy(task)
    other.recipe = replace(task.recipe, p=p)
    return other


def rows(records: Sequence[RunRecord]) -> dict[float, QualityRow]:
    """p -> quality over seeds, p rising."""
    found: dict[float, list[RunRecord]] = {}
    for record in records:
        found.setdefault(record.identity.p or 1.0, []).append(record)
    return {p: quality_row("prms", found[p]) for p in sorted(found)}


def show(task: Task, found: dict[float, QualityRow], console: Console) -> None:
    """Print the sweep."""
    title = f"sweep of pRMSNorm's p · {task.name}, test · {source_of(task)}"
    rows = [Row(f"{100 * p:g}", [quality_cell(row, metric) for metric in task.metrics]) for p, row in found.items()]
    Table(["p, %", *(metric.label for metric in task.metrics)], rows, title).show(console)


def as_json(task: Task, found: dict[float, QualityRow]) -> dict[str, Any]:
    """The same for a program."""
    return {"task": task.name, "p": [{"p": p, **asdict(row)} for p, row in found.items()]}
