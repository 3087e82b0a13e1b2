"""The tables of ``rmsnorm partial``, and everything measured as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rmsnorm_lab.analysis.partial import NormRows
from rmsnorm_lab.analysis.partial_quality import Sweep
from rmsnorm_lab.experiments import norms
from rmsnorm_lab.experiments.comparison import quality_cell
from rmsnorm_lab.experiments.trained import Trained
from rmsnorm_lab.table import Cell, Row, Table

SHOWN = (4, 16, 64)
"""The k of the table's columns; JSON has all."""


def estimates(trained: Trained, found: Sequence[NormRows]) -> Table:
    """A row for each norm: the error of the RMS, below it that of elements chosen at random."""
    rows = []
    for norm in found:
        of_k = {each.k: each for each in norm.estimates}
        cells = [_error(of_k[k].error, of_k[k].random) if k in of_k else Cell("") for k in SHOWN]
        rows.append(Row(norm.place, [str(norm.n), f"{norm.kurtosis:.1f}", *cells]))
    source = trained.record.source_name
    return Table(
        ["norm", "n", "κ", *(f"error, %\nk = {k}" for k in SHOWN)],
        rows,
        f"RMS of the first k elements against that of all · {trained.task} · {norms.label(trained.norm)} · {source}",
        "error: standard deviation over rows of RMS(first k) / RMS(all), divided by its mean; in brackets that of k "
        "elements\nchosen at random, √((κ − 1) / 4k · (n − k) / (n − 1)), κ = mean(x⁴) / mean(x²)² of a row",
    )


def _error(measured: float, random: float) -> Cell:
    return Cell(f"{100 * measured:.1f} ({100 * random:.1f})")


def quality(sweep: Sweep) -> Table:
    """A row for each k, a column for each width."""
    ks = sorted({k for rows in sweep.widths.values() for k in rows})
    return Table(
        ["k", *(f"width {width}" for width in sweep.widths)],
        [
            Row(str(k), [quality_cell(of[k], sweep.metric) if k in of else "" for of in sweep.widths.values()])
            for k in ks
        ],
        f"{sweep.metric.label.replace(chr(10), ' ')} against the k of pRMSNorm · {sweep.task}, test",
        "mean ± standard deviation over seeds; at k = width it is RMSNorm",
    )


def as_json(networks: Sequence[tuple[Trained, Sequence[NormRows]]], sweeps: Sequence[Sweep]) -> dict[str, Any]:
    """Both for a program."""
    return {
        "estimates": [
            {"task": trained.task, "norm": trained.norm, "norms": [asdict(norm) for norm in found]}
            for trained, found in networks
        ],
        "quality": [
            {
                "task": sweep.task,
                "metric": sweep.metric.key,
                "widths": {width: {k: asdict(row) for k, row in of.items()} for width, of in sweep.widths.items()},
            }
            for sweep in sweeps
        ],
    }
