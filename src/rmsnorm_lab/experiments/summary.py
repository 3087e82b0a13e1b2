"""The results of a comparison: quality over seeds, and time against LayerNorm in one setting."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rmsnorm.timing import Spread, saved, spread
from rmsnorm_lab.experiments.record import Record, RunRecord, TimingRecord
from rmsnorm_lab.table import signed

MOST_NAMED = 3
"""The most commits and versions to list."""


@dataclass(frozen=True)
class Quality:
    """A metric over seeds."""

    mean: float
    sd: float | None
    """Sample standard deviation; None for a single run."""


@dataclass(frozen=True)
class QualityRow:
    """The result of one normaliser's runs."""

    norm: str
    runs: int
    diverged: int
    metrics: dict[str, Quality]
    """Of each figure that all runs have, over those that did not diverge; empty where all did."""


def quality_row(norm: str, records: Sequence[RunRecord]) -> QualityRow:
    finished = [record.result.quality for record in records if record.result.quality is not None]
    keys = [key for key in (finished[0] if finished else ()) if all(key in quality for quality in finished)]
    columns = {key: [quality[key] for quality in finished] for key in keys}
    metrics = {
        key: Quality(statistics.fmean(column), statistics.stdev(column) if len(column) > 1 else None)
        for key, column in columns.items()
    }
    return QualityRow(norm, len(records), len(records) - len(finished), metrics)


@dataclass(frozen=True)
class TimeRow:
    """The time of a step with one normaliser in one setting."""

    norm: str
    milliseconds: float
    """LayerNorm's median step less the time saved, because two medians of unpaired times could contradict the ratio.
    The median step itself if LayerNorm was not timed."""
    saved: Spread | None
    """The share of LayerNorm's step that is saved; None for LayerNorm itself, and where it was not timed."""
    norm_share: Spread | None
    """The share of the step that the normalisers take, by ablation; None for no norm, and where that was not timed."""
    profiled_share: float | None
    """The same by torch.profiler; None for no norm, and where the norm has no call of its own (fused recurrences)."""
    peak_memory: int
    """Bytes of tensors at the fullest moment of a step."""


def time_row(norm: str, record: TimingRecord) -> TimeRow:
    times = record.result.milliseconds
    layer, none = (times.get(reference) if norm != reference else None for reference in ("layer", "none"))
    against_layer = None if layer is None else saved(layer, times[norm])
    median = spread(times[norm] if layer is None else layer).median
    return TimeRow(
        norm=norm,
        milliseconds=median if against_layer is None else median * (1 - against_layer.median),
        saved=against_layer,
        norm_share=None if none is None else saved(times[norm], none),
        profiled_share=record.result.profiled_share[norm],
        peak_memory=record.result.peak_memory[norm],
    )


def percent(share: Spread) -> tuple[str, str]:
    """The median in percent and its interval: ("6.3", "[3.8, 9.4]"); no interval is ""."""
    median = signed(100 * share.median, ".1f")
    if share.interval is None:
        return median, ""
    low, high = (signed(100 * bound, ".1f") for bound in share.interval)
    return median, f"[{low}, {high}]"


def mixed_machines(records: Sequence[Record]) -> list[str]:
    """The versions in which the records differ: 'torch 2.12.0, 2.13.0'."""
    found: dict[str, set[str]] = {}
    for record in records:
        made = record.machine
        named = {**made.versions, "cpu": made.cpu, "python": made.python, "commit": (made.commit or "")[:12]}
        for name, value in named.items():
            found.setdefault(name, set()).add(value or "unknown")
    return [f"{name} {_some(sorted(values))}" for name, values in found.items() if len(values) > 1]


def _some(values: Sequence[str]) -> str:
    return ", ".join(values[:MOST_NAMED]) + (
        f" and {len(values) - MOST_NAMED} more" if len(values) > MOST_NAMED else ""
    )
