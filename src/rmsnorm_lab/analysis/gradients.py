"""§4.2 of the paper, measured: how ∂L/∂W changes when the inputs or the weights are re-scaled by δ.

The paper derives for RMSNorm that ∂L/∂W does not change with the scale of x and shrinks as 1/δ with that of W: an
implicit adaptation of the learning rate. Its R·a = 0 implies ⟨∂L/∂W, W⟩ = 0: a gradient step never shortens W.
The gradient at the layer's output is fixed, so that only the normaliser's part changes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rmsnorm_lab.analysis.normed_layer import Draw, Sizes, layers
from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments import norms

DELTAS = tuple(10 ** (exponent / 4) for exponent in range(-12, 13))
"""1/1000 to 1000, four a decade."""
POWER_WITHIN = 1e-9
"""If a gradient follows a power of δ, the deviation is rounding, about 1e-15; if not, it is some percent."""
DERIVED = {"rms": (0, -1)}
"""The exponents of δ that §4.2 derives, for x and for W."""


@dataclass(frozen=True)
class Sweep:
    """∂L/∂W along :data:`DELTAS`."""

    length: list[float]
    """‖∂L/∂W‖ as a multiple of that at δ = 1."""
    exponent: int | None
    """The e with ∂L/∂W(δ) = δᵉ ∂L/∂W(1) at every δ; None if there is none."""
    deviation: float
    """The largest ‖∂L/∂W(δ) − δᵉ ∂L/∂W(1)‖ / ‖δᵉ ∂L/∂W(1)‖, with the nearest e if no power fits."""


@dataclass(frozen=True)
class Gradients:
    """One normaliser's gradient."""

    inputs: Sweep
    """x times δ."""
    weights: Sweep
    """W times δ."""
    along_weights: float
    """|⟨∂L/∂W, W⟩| / (‖∂L/∂W‖ ‖W‖): 0 if a gradient step never shortens W."""


def measure(sizes: Sizes, seed: int, own: Sequence[str] = ()) -> dict[str, Gradients]:
    """Every normaliser, and the user's ``own``, on one random layer."""
    draw = Draw.random(sizes, torch.Generator().manual_seed(seed))
    found = {}
    for norm, layer in layers(sizes, own).items():
        start = layer.gradient(draw, draw.x_NI, draw.w_OI)
        if not 0 < start.norm() < math.inf:
            raise UserError(
                f"{norms.label(norm)} must have a finite gradient other than 0; ‖∂L/∂W‖ is {start.norm():g} on random "
                "data. Its output is constant, or not finite."
            )
        found[norm] = Gradients(
            inputs=_sweep(start, [layer.gradient(draw, draw.x_NI * delta, draw.w_OI) for delta in DELTAS]),
            weights=_sweep(start, [layer.gradient(draw, draw.x_NI, draw.w_OI * delta) for delta in DELTAS]),
            along_weights=float((start * draw.w_OI).sum().abs() / (start.norm() * draw.w_OI.norm())),
        )
    return found


def _sweep(start: Tensor, gradients: list[Tensor]) -> Sweep:
    length = (torch.stack([each.norm() for each in gradients]) / start.norm()).tolist()
    above = next(place for place, delta in enumerate(DELTAS) if delta > 1)  # far from 1 a DyT's can be 0
    exponent = round(math.log(length[above]) / math.log(DELTAS[above]))
    off = [(each / delta**exponent - start).norm() for each, delta in zip(gradients, DELTAS, strict=True)]
    deviation = float(torch.stack(off).max() / start.norm())
    return Sweep(length, exponent if deviation < POWER_WITHIN else None, deviation)
