"""A sweep of the learning rate, the same for every normaliser. The recipes' rates come from it.

Each rate is judged by the headline metric on the validation split, never on the split that comparisons report.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from rmsnorm_lab.experiments import norms
from rmsnorm_lab.experiments.comparison import source_of
from rmsnorm_lab.experiments.jobs import Job, training
from rmsnorm_lab.experiments.learner import Setup
from rmsnorm_lab.experiments.recipes.common import TrainConfig
from rmsnorm_lab.experiments.record import RunRecord, RunResult
from rmsnorm_lab.experiments.run import best_point, chosen_by
from rmsnorm_lab.experiments.task import Metric, Task
from rmsnorm_lab.table import Row, Table


def jobs(task: Task, setup: Setup, norms: Sequence[str], seeds: int, rates: Sequence[float]) -> list[Job]:
    """Every normaliser at every rate and seed; a rate that the recipe has anyway is the comparison's own run."""
    return [training(task, setup, norm, seed, rate) for seed in range(seeds) for rate in rates for norm in norms]


@dataclass(frozen=True)
class Sweep:
    """The validation figures of normalisers at several rates."""

    metric: Metric
    valid: dict[str, dict[float, float | None]]
    """Normaliser -> rate -> mean over seeds of the last (or best, if the recipe takes that) figure; None where a run
    diverged."""

    @property
    def best(self) -> dict[str, float | None]:
        """Normaliser -> its best rate; None where it diverged at all."""
        best = max if self.metric.higher_is_better else min
        finite = {norm: {r: v for r, v in row.items() if v is not None} for norm, row in self.valid.items()}
        return {norm: best(row, key=row.__getitem__) if row else None for norm, row in finite.items()}

    @property
    def best_at_an_end(self) -> list[str]:
        """Normalisers whose best rate is the lowest or the highest that was tried with them."""
        return [norm for norm, rate in self.best.items() if rate in (min(self.valid[norm]), max(self.valid[norm]))]


def swept(runs: Mapping[str, Sequence[RunRecord]]) -> Sweep:
    """The sweep that runs are of, by normaliser. Of each normaliser the seeds count that were run at all of its rates:
    the best rate may have more."""
    valid: dict[str, dict[float, float | None]] = {}
    for norm, of_norm in runs.items():
        by_rate: dict[float, list[RunRecord]] = {}
        seeds = seeds_of_all_rates(of_norm)
        for run in of_norm:
            if run.identity.seed in seeds:
                by_rate.setdefault(run.identity.train.learning_rate, []).append(run)
        if by_rate:
            valid[norm] = {rate: _mean(by_rate[rate]) for rate in sorted(by_rate)}
    return Sweep(next(run for of_norm in runs.values() for run in of_norm).result.metrics[0], valid)


def seeds_of_all_rates(runs: Sequence[RunRecord]) -> set[int]:
    """The seeds that a normaliser was trained with at all of its rates."""
    of_rate: dict[float, set[int]] = {}
    for run in runs:
        of_rate.setdefault(run.identity.train.learning_rate, set()).add(run.identity.seed)
    return set.intersection(*of_rate.values())


def _mean(runs: Sequence[RunRecord]) -> float | None:
    metric = runs[0].result.metrics[0]
    figures = [_figure(run.result, metric, run.identity.train) for run in runs]
    finite = [figure for figure in figures if figure is not None]
    return statistics.fmean(finite) if len(finite) == len(figures) else None


def _figure(run: RunResult, metric: Metric, config: TrainConfig) -> float | None:
    """The validation figure of a run's last point, or of the point whose weights are tested; None if it diverged."""
    place = best_point(chosen_by(config, run.metrics), run.curve.valid) if config.best else -1
    return None if place is None or not run.finished else run.curve.valid[metric.key][place]


def table(found: Sweep, title: str) -> Table:
    """A row for each normaliser; the best of each row is marked."""
    rates = sorted({rate for row in found.valid.values() for rate in row})
    best, rows = found.best, []
    for norm, row in found.valid.items():
        cells = []
        for rate in rates:
            value = row.get(rate)
            shown = "diverged" if value is None else f"{value:{found.metric.form}}"
            cells.append("" if rate not in row else shown + (" *" if rate == best[norm] else ""))
        rows.append(Row(norms.label(norm), cells))
    note = "* the best of its row"
    if ends := found.best_at_an_end:
        labels = ", ".join(map(norms.label, ends))
        note += f"\nat an end of the rates tried: {labels}; a rate beyond it may be better"
    return Table(["norm", *(f"{rate:g}" for rate in rates)], rows, title, note)


def show(task: Task, found: Sweep, console: Console) -> None:
    """Print the sweep."""
    label = found.metric.validation_label
    title = f"sweep of the learning rate · {task.name} · {label}, validation · {source_of(task)}"
    table(found, title).show(console)


def as_json(task: Task, found: Sweep) -> dict[str, Any]:
    """The same for a program."""
    return {
        "task": task.name,
        "source": source_of(task),
        "metric": found.metric.validation_label,
        "form": found.metric.form,
        "valid": {norm: {f"{rate:g}": value for rate, value in row.items()} for norm, row in found.valid.items()},
        "best": {norm: None if rate is None else f"{rate:g}" for norm, rate in found.best.items()},
        "best_at_an_end": found.best_at_an_end,
    }
