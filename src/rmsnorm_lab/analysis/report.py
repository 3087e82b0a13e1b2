"""What ``rmsnorm invariance`` prints: two tables, or everything as JSON."""

from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rmsnorm_lab.analysis import gradients, invariance
from rmsnorm_lab.analysis.gradients import Gradients, Sweep
from rmsnorm_lab.analysis.invariance import PAPER, Cell
from rmsnorm_lab.analysis.layers import DYT_ALPHA, GROUPS
from rmsnorm_lab.analysis.plot import power
from rmsnorm_lab.experiments import norms
from rmsnorm_lab.experiments.recipes.common import P

NOTHING_BELOW = 1e-9
"""A cosine that only rounding keeps from 0."""


def mark(cell: Cell) -> str:
    """'✓ 3e-16' or '✗ 4e-01': kept or not, and the deviation; '≠' where the paper says otherwise."""
    return f"{'✓' if cell.invariant else '✗'} {cell.deviation:.0e}{'' if cell.agrees else ' ≠'}"


def law(sweep: Sweep) -> str:
    """'∝ δ⁻¹', or that the gradient follows no power of δ."""
    return "no power of δ" if sweep.exponent is None else power(sweep.exponent)


def show(trials: int, table: dict[str, dict[str, Cell]], found: dict[str, Gradients]) -> None:
    """Both tables on standard output, within 80 columns."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file or a pipe has no width to obey
    console.print("Table 1, measured: does the output of y = norm(W x) stay?", style="bold", highlight=False)
    console.print(_invariances(table), highlight=False)
    for note in _invariance_notes(trials, table):
        console.print(note, highlight=False, soft_wrap=True)
    console.print("\n§4.2, measured: what re-scaling by δ makes of ∂L/∂W", style="bold", highlight=False)
    console.print(_gradients(found), highlight=False)
    first, last = gradients.DELTAS[0], gradients.DELTAS[-1]
    console.print(
        f"δ from {first:g} to {last:g}, ∂L/∂y held fixed; the last column is the cosine between ∂L/∂W and W,\n"
        "0 where a gradient step never shortens W. The paper derives RMSNorm's row.",
        highlight=False,
        soft_wrap=True,
    )


def _table(headings: list[str]) -> Table:
    made = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    for heading in ["norm", *headings]:
        made.add_column(heading, no_wrap=True)
    return made


def _invariances(table: dict[str, dict[str, Cell]]) -> Table:
    shown = _table([name.replace(" ", "\n") for name in invariance.TRANSFORMATIONS])
    for norm, row in table.items():
        shown.add_row(norms.label(norm), *map(mark, row.values()), end_section=norm == list(PAPER)[-1])
    return shown


def _invariance_notes(trials: int, table: dict[str, dict[str, Cell]]) -> list[str]:
    said = [cell for row in table.values() for cell in row.values() if cell.paper is not None]
    agreeing = sum(cell.agrees for cell in said)
    return [
        f"✓ stays, ✗ does not; the number is the largest max|y' − y| / max|y| over {trials} random "
        f"layer{'s' if trials > 1 else ''},\n"
        f"float64, eps = 0; ✓ below {invariance.KEPT_BELOW:g}. "
        f"pRMSNorm of the first {100 * P:g} %, GroupNorm of {GROUPS} groups, DyT with α = {DYT_ALPHA:g}",
        f"{agreeing} of {len(said)} cells are as in the paper's Table 1"
        + ("" if agreeing == len(said) else "; ≠ marks the others")
        + "; the last four rows are not in it",
    ]


def _gradients(found: dict[str, Gradients]) -> Table:
    shown = _table(["x times δ", "deviation", "W times δ", "deviation", "|cos(∂L/∂W, W)|"])
    for norm, each in found.items():
        cosine = f"{'0 ' if each.along_weights < NOTHING_BELOW else ''}({each.along_weights:.0e})"
        sweeps = (part for sweep in (each.inputs, each.weights) for part in (law(sweep), f"{sweep.deviation:.0e}"))
        shown.add_row(norms.label(norm), *sweeps, cosine, end_section=norm == list(PAPER)[-1])
    return shown


def as_json(
    arguments: dict[str, Any], table: dict[str, dict[str, Cell]], found: dict[str, Gradients]
) -> dict[str, Any]:
    """Everything measured, and of what."""
    return {
        "settings": {name: arguments[name] for name in ("cases", "inputs", "outputs", "trials", "seed")},
        "kept_below": invariance.KEPT_BELOW,
        "agrees_with_paper": invariance.agrees(table),
        "invariance": {
            norm: {name: {"invariant": cell.invariant, **asdict(cell)} for name, cell in row.items()}
            for norm, row in table.items()
        },
        "gradients": {
            "deltas": gradients.DELTAS,
            "paper_exponents": gradients.PAPER,
            "norms": {norm: asdict(each) for norm, each in found.items()},
        },
    }
