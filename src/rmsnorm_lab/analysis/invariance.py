"""Table 1 of the paper, measured: which changes of weights or data leave a normalised layer's output the same.

Every transformation is applied to random layers and data; the largest deviation over all trials, max|y' − y| / max|y|,
decides. Source: Zhang & Sennrich (2019), §4.1 and Table 1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rmsnorm_lab.analysis.normed_layer import Draw, Sizes, layers

KEPT_BELOW = 1e-9
"""Where an invariance holds, rounding in float64 moves the output by less than 1e-12; where not, by over 1e-3."""

Transform = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]
"""(x, W, randomness) -> (x', W')."""


def _factor(generator: torch.Generator) -> float:
    """A positive δ far from 1: 2 to 100, or the inverse of such a number."""
    exponent, side = torch.rand(2, generator=generator).tolist()
    return (2 * 50**exponent) ** (1 if side < 0.5 else -1)


def _one_of(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def _shift(like_I: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like_I.shape, generator=generator, dtype=like_I.dtype)


def _one_row_scaled(rows: Tensor, generator: torch.Generator) -> Tensor:
    scaled = rows.clone()
    scaled[_one_of(len(rows), generator)] *= _factor(generator)
    return scaled


TRANSFORMATIONS: dict[str, Transform] = {
    "weight matrix re-scaling": lambda x, w, rng: (x, w * _factor(rng)),
    "weight matrix re-centring": lambda x, w, rng: (x, w + _shift(w[0], rng)),
    "weight vector re-scaling": lambda x, w, rng: (x, _one_row_scaled(w, rng)),
    "dataset re-scaling": lambda x, w, rng: (x * _factor(rng), w),
    "dataset re-centring": lambda x, w, rng: (x + _shift(x[0], rng), w),
    "single case re-scaling": lambda x, w, rng: (_one_row_scaled(x, rng), w),
}
"""W' = δW; every row of W + γ; one row of W times δ; x' = δx; every case + γ; one case times δ."""

TABLE_1 = {
    "batch": (True, False, True, True, True, False),
    "weight": (True, False, True, False, False, False),
    "layer": (True, True, False, True, False, True),
    "rms": (True, False, False, True, False, True),
    "prms": (True, False, False, True, False, True),
}
"""The paper's Table 1, its columns in the order of :data:`TRANSFORMATIONS`."""


@dataclass(frozen=True)
class Cell:
    """One normaliser under one transformation."""

    deviation: float
    """The largest max|y' − y| / max|y| over the trials."""
    paper: bool | None
    """Whether it is invariant in the paper's table; None if it is not in the table."""

    @property
    def invariant(self) -> bool:
        return self.deviation < KEPT_BELOW

    @property
    def agrees(self) -> bool:
        return self.paper in (None, self.invariant)


@torch.no_grad()
def measure(sizes: Sizes, trials: int, seed: int, own: Sequence[str] = ()) -> dict[str, dict[str, Cell]]:
    """The table: normaliser -> transformation -> :class:`Cell`, every normaliser on the same draws; the user's ``own``
    come last."""
    generator = torch.Generator().manual_seed(seed)
    measured = layers(sizes, own)
    deviations = {norm: dict.fromkeys(TRANSFORMATIONS, 0.0) for norm in measured}
    for _ in range(trials):
        draw = Draw.random(sizes, generator)
        changed = {name: change(draw.x_NI, draw.w_OI, generator) for name, change in TRANSFORMATIONS.items()}
        for norm, row in deviations.items():
            output = partial(measured[norm].output, draw)
            before = output(draw.x_NI, draw.w_OI)
            for name, (x_NI, w_OI) in changed.items():
                moved = (output(x_NI, w_OI) - before).abs().max() / before.abs().max()
                row[name] = max(row[name], float(moved.nan_to_num(nan=math.inf)))  # max() would lose a NaN
    return {
        norm: {
            name: Cell(row[name], said) for name, said in zip(row, TABLE_1.get(norm, (None,) * len(row)), strict=True)
        }
        for norm, row in deviations.items()
    }


def agreement(table: dict[str, dict[str, Cell]]) -> tuple[int, int]:
    """How many cells are as in the paper's table, of how many that it has."""
    compared = [cell for row in table.values() for cell in row.values() if cell.paper is not None]
    return sum(cell.agrees for cell in compared), len(compared)


def agrees(table: dict[str, dict[str, Cell]]) -> bool:
    """Whether every cell is as in the paper's table."""
    agreeing, compared = agreement(table)
    return agreeing == compared
