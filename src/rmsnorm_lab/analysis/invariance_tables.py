"""The two tables of ``rmsnorm invariance``, and everything measured as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from rmsnorm_lab.analysis import gradients, invariance
from rmsnorm_lab.analysis.gradients import Gradients, Sweep
from rmsnorm_lab.analysis.gradients_figure import power
from rmsnorm_lab.analysis.normed_layer import EPS, IN_TABLE_1
from rmsnorm_lab.experiments import norms
from rmsnorm_lab.experiments.recipes.common import P
from rmsnorm_lab.table import Cell, Row, Table

ZERO_BELOW = 1e-9
"""A smaller cosine is 0 except for rounding."""


def show(
    trials: int,
    measured: dict[str, dict[str, invariance.Cell]],
    found: dict[str, Gradients],
    without_eps: Sequence[str] = (),
) -> None:
    """Print both tables on standard output, within 80 columns. ``without_eps``: norms that have no ``eps`` to set."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file or a pipe has no width
    invariance_table(trials, measured, without_eps).show(console)
    console.print()
    gradient_table(found).show(console)


def invariance_table(
    trials: int, measured: dict[str, dict[str, invariance.Cell]], without_eps: Sequence[str] = ()
) -> Table:
    """The paper's Table 1."""
    rows = [
        Row(norms.label(norm), [_kept(cell) for cell in row.values()], ends_section=norm == IN_TABLE_1[-1])
        for norm, row in measured.items()
    ]
    agreeing, compared = invariance.agreement(measured)
    notes = [
        f"✓ stays, ✗ changes; the number is the largest max|y' − y| / max|y| over {trials} random "
        f"layer{'s' if trials > 1 else ''},",
        f"float64, eps = {EPS:g}; ✓ below {invariance.KEPT_BELOW:g}. pRMSNorm of the first {100 * P:g} %",
        f"{agreeing} of {compared} cells are as in the paper's Table 1"
        + ("" if agreeing == compared else "; ≠ marks the others")
        + "; the others are not in it",
        *(note for norm in without_eps for note in _own_constants(norm)),
    ]
    return Table(
        headings=["norm", *(name.replace(" ", "\n") for name in invariance.TRANSFORMATIONS)],
        rows=rows,
        title="Table 1, measured: does the output of y = norm(W x) stay the same?",
        note="\n".join(notes),
        narrow=True,
    )


def _own_constants(norm: str) -> list[str]:
    """A deviation of 1e-4 from a literal 1e-5 would otherwise be read as a broken invariance."""
    return [
        f"{norms.label(norm)}: no number called eps was found, so it keeps its own small constants;",
        "a ✗ with a small deviation may be due to these. Name such a number self.eps",
    ]


def _kept(cell: invariance.Cell) -> Cell:
    """'✓ 3e-16' or '✗ 4e-01': kept or not, and the deviation; '≠' where the paper says otherwise."""
    text = f"{'✓' if cell.invariant else '✗'} {cell.deviation:.0e}{'' if cell.agrees else ' ≠'}"
    return Cell(text, kind=f"{'yes' if cell.invariant else 'no'}{'' if cell.agrees else ' off'}")


def gradient_table(found: dict[str, Gradients]) -> Table:
    """The gradients of §4.2."""
    rows = []
    for norm, each in found.items():
        cosine = f"{'0 ' if each.along_weights < ZERO_BELOW else ''}({each.along_weights:.0e})"
        sweeps = (part for sweep in (each.inputs, each.weights) for part in (law(sweep), f"{sweep.deviation:.0e}"))
        rows.append(Row(norms.label(norm), [*sweeps, cosine], ends_section=norm == IN_TABLE_1[-1]))
    first, last = gradients.DELTAS[0], gradients.DELTAS[-1]
    return Table(
        headings=["norm", "x times δ", "deviation", "W times δ", "deviation", "|cos(∂L/∂W, W)|"],
        rows=rows,
        title="§4.2, measured: the size of ∂L/∂W when x or W is re-scaled by δ",
        note=f"δ from {first:g} to {last:g}, with ∂L/∂y fixed. If the cosine between ∂L/∂W and W is 0, a gradient\n"
        "step never shortens W. The paper derives RMSNorm's row.",
        narrow=True,
    )


def law(sweep: Sweep) -> str:
    """'∝ δ⁻¹', or that the gradient follows no power of δ."""
    return "no power of δ" if sweep.exponent is None else power(sweep.exponent)


def as_json(
    arguments: dict[str, Any],
    measured: dict[str, dict[str, invariance.Cell]],
    found: dict[str, Gradients],
    without_eps: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything measured, and the settings."""
    return {
        "settings": {name: arguments[name] for name in ("cases", "inputs", "outputs", "trials", "seed")},
        "without_eps": list(without_eps),
        "kept_below": invariance.KEPT_BELOW,
        "agrees_with_paper": invariance.agrees(measured),
        "invariance": {
            norm: {name: {"invariant": cell.invariant, **asdict(cell)} for name, cell in row.items()}
            for norm, row in measured.items()
        },
        "gradients": {
            "deltas": gradients.DELTAS,
            "paper_exponents": gradients.DERIVED,
            "norms": {norm: asdict(each) for norm, each in found.items()},
        },
    }
