"""The difference between two normalisers' quality, paired by seed, and what it shows in words.

Runs with the same seed start from the same weights and see the same batches, so what a seed does to both cancels.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from rmsnorm_lab.experiments import norms
from rmsnorm_lab.experiments.record import Metric, RunRecord
from rmsnorm_lab.table import signed


@dataclass(frozen=True)
class Difference:
    """The mean over seeds of one norm's figure minus the other's, in the metric's unit."""

    metric: Metric
    mean: float
    interval: tuple[float, float] | None
    """Of 95 % confidence, by Student's t; None for a single seed."""
    seeds: int
    """In which neither run diverged."""

    @property
    def better(self) -> bool | None:
        """Whether the first norm is better; None: no difference is shown, because the interval holds 0 (as it is
        printed: a bound that is shown as 0 counts as 0) or there is none."""
        if self.interval is None:
            return None
        low, high = (float(f"{bound:{self.metric.form}}") for bound in self.interval)
        return None if low <= 0 <= high else (low > 0) == self.metric.higher_is_better

    def texts(self) -> tuple[str, str]:
        """The mean and its interval: ("−3.40", "[−20.11, 13.31]"); no interval is ""."""
        form = self.metric.form
        mean = ("+" if float(f"{self.mean:{form}}") > 0 else "") + signed(self.mean, form)
        if self.interval is None:
            return mean, ""
        low, high = self.interval
        return mean, f"[{signed(low, form)}, {signed(high, form)}]"


def difference(metric: Metric, ours: Sequence[RunRecord], theirs: Sequence[RunRecord]) -> Difference | None:
    """``ours`` − ``theirs`` on the test split; None if no seed was finished by both."""
    columns = [
        {run.identity.seed: run.result.quality[metric.key] for run in runs if run.result.quality is not None}
        for runs in (ours, theirs)
    ]
    seeds = sorted(columns[0].keys() & columns[1].keys())
    found = [columns[0][seed] - columns[1][seed] for seed in seeds]
    if not found:
        return None
    mean, interval = statistics.fmean(found), None
    if len(found) > 1:
        half = float(stdtrit(len(found) - 1, 0.975)) * statistics.stdev(found) / math.sqrt(len(found))
        interval = (mean - half, mean + half)
    return Difference(metric, mean, interval, len(found))


def said(metric: Metric, norm: str, ours: Sequence[RunRecord], reference: str, theirs: Sequence[RunRecord]) -> str:
    """What the runs of a norm show against those of a reference: a clause without its full stop."""
    name, other, label = norms.label(norm), norms.label(reference), metric.label.replace("\n", " ")
    found = difference(metric, ours, theirs)
    fates = [fate for fate in (_fate(name, ours), _fate(other, theirs)) if fate]
    if found is None:
        return ", ".join(fates) if fates else f"{name} and {other} have no seed in common"
    mean, interval = found.texts()
    if found.interval is None:
        clause = f"one seed cannot show a difference in {label} ({name} − {other}: {mean})"
    else:
        figures = f"{name} − {other}: {mean} {interval}, {found.seeds} seeds"
        shown = {
            None: f"no difference in {label} is shown between {name} and {other}",
            True: f"{name} is better than {other} in {label}",
            False: f"{name} is worse than {other} in {label}",
        }[found.better]
        clause = f"{shown} ({figures})"
    return ", ".join([clause, *fates])


def _fate(name: str, runs: Sequence[RunRecord]) -> str:
    diverged = sum(not run.result.finished for run in runs)
    return f"{name} diverged in {diverged} of {len(runs)} runs" if diverged else ""
