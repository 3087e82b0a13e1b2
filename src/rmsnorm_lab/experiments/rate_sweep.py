"""A sweep of the learning rate, the same for every normaliser. The recipes' rates come from it.

Each rate is judged by the headline metric on the validation split, never on the split that comparisons report.
"""

import statistics
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from rmsnorm_lab.experiments import norms
from rmsnorm_lab.experiments.comparison import source_of
from rmsnorm_lab.experiments.jobs import Job, training
from rmsnorm_lab.experiments.learner import Setup
from rmsnorm_lab.experiments.record import RunRecord, RunResult
from rmsnorm_lab.experiments.task import Metric, Task
from rmsnorm_lab.table import Row, Table


def jobs(task: Task, setup: Setup, norms: Sequence[str], seeds: int, rates: Sequence[float]) -> list[Job]:
    """Every normaliser at every rate and seed; a rate that the recipe has anyway is the comparison's own run."""
    return [training(task, setup, norm, seed, rate) for seed in range(seeds) for rate in rates for norm in norms]


def summary(task: Task, norms: Sequence[str], rates: Sequence[float], records: Sequence[RunRecord]) -> dict[str, Any]:
    """Mean over seeds of the last (or best, if the recipe takes that) validation figure; None where a run diverged."""
    metric = task.metrics[0]
    best = max if metric.higher_is_better else min
    table: dict[str, dict[str, float | None]] = {}
    for norm in norms:
        row: dict[str, float | None] = {}
        for rate in rates:
            runs = [
                record.result
                for record in records
                if record.identity.norm == norm and record.identity.train.learning_rate == rate
            ]
            figures = [figure for run in runs if (figure := _figure(run, metric, task.recipe.train.best)) is not None]
            row[f"{rate:g}"] = statistics.fmean(figures) if len(figures) == len(runs) else None
        table[norm] = row
    ends_of_grid = {f"{end(rates):g}" for end in (min, max)}
    chosen = {}
    for norm, row in table.items():
        of_rate = {rate: value for rate, value in row.items() if value is not None}
        chosen[norm] = best(of_rate, key=of_rate.__getitem__) if of_rate else None
    return {
        "task": task.name,
        "source": source_of(task),
        "metric": metric.validation_label,
        "form": metric.form,
        "valid": table,
        "best": chosen,
        "best_at_an_end": [norm for norm, rate in chosen.items() if rate in ends_of_grid],
    }


def _figure(run: RunResult, metric: Metric, best: bool) -> float | None:
    """The validation figure of a run; None if it diverged."""
    column = run.curve.valid[metric.key]
    seen = [value for value in column if value is not None]
    if not run.finished or not seen:
        return None
    return (max if metric.higher_is_better else min)(seen) if best else column[-1]


def show(found: dict[str, Any], console: Console) -> None:
    """Print the sweep; the best of each row is marked."""
    title = f"sweep of the learning rate · {found['task']} · {found['metric']}, validation · {found['source']}"
    rows = []
    for norm, row in found["valid"].items():
        cells = [
            "diverged" if value is None else f"{value:{found['form']}}" + (" *" if rate == found["best"][norm] else "")
            for rate, value in row.items()
        ]
        rows.append(Row(norms.label(norm), cells))
    Table(["norm", *next(iter(found["valid"].values()))], rows, title, note="* the best of its row").show(console)
    if ends := found["best_at_an_end"]:
        labels = ", ".join(map(norms.label, ends))
        console.print(
            f"at an end of the rates tried: {labels}; a rate beyond it may be better",
            highlight=False,
            soft_wrap=True,
        )
