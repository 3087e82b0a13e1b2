"""What modules are run on, and when two results count as equal.

The thresholds lie in a gap: a right convention is within 2 units in the last place in float32 and differs in at most
0.04 % of 16-bit results, a wrong one in 25 to 40 % (212 classes of 27 formulas in transformers 5.24).
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from rmsnorm.torch.swap.conventions import Convention, Names, Pair
from rmsnorm.torch.swap.gated import GatedConvention
from rmsnorm.torch.swap.shadow import Left, with_attribute

Sample = tuple[Tensor, tuple[Tensor, Any, Any]]
"""A module's result, and the tensors from which a convention computes its own."""
TOLERANCE = 16 * 2.0**-23
"""Of a float32 result, relative to the sizes that it is made of."""
GRADIENT_TOLERANCE = 1e-4
DIFFERING = 0.01
"""The share of 16-bit results that may differ, by one unit in the last place each."""


def seeded(seed: int = 0) -> torch.Generator:
    """Random numbers that are the same at each call, and are drawn from no generator of the caller's."""
    return torch.Generator().manual_seed(seed)


def make_rows(wide: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Rows of sizes from 1e-6 to 1e6, one with a mean, one with an outlier."""
    count = max(16, -(-2048 // math.prod(wide)))
    x = torch.randn(count, *wide, generator=generator)
    x = x * torch.logspace(-6, 6, count).reshape(-1, *[1] * len(wide))
    x[-1] = x[-1] / 1e6 + 5
    x[-2] = x[-2].sign()
    x[-2, ..., 0] = 40 * math.prod(wide) ** 0.5
    return x


def make_parameters(
    names: Names, wide: tuple[int, ...], generator: torch.Generator, outlier: float = 100
) -> dict[str, Tensor]:
    """Random gains and biases; ``outlier``: what one gain is multiplied by, for a result beyond what is clamped."""
    parameters = {name: torch.randn(wide, generator=generator) for name in names if name is not None}
    if names.weight is not None:
        parameters[names.weight][..., 0] *= outlier  # where make_rows has its own
    return parameters


def gain_of_one(names: Names, gain: str, wide: tuple[int, ...]) -> dict[str, Tensor]:
    """Parameters with which the gain is one and the bias zero."""
    weight = torch.full(wide, 0.0 if gain == "1 + weight" else 1.0)
    return {name: t for name, t in zip(names, (weight, torch.zeros(wide)), strict=True) if name is not None}


def named_eps(module: nn.Module, measure: Callable[[nn.Module], float], smallest: float) -> tuple[float, str | None]:
    """The eps that ``measure`` finds: as the attribute of the module that changes it, or as a number of two digits."""
    measured = measure(module)
    if not math.isfinite(measured) or measured > 2:
        raise Left("rows near zero do not come out as x / √eps")
    if measured < 4 * smallest:  # the row's own mean square
        measured = 0.0
    attributes = {
        name: float(value)
        for name, value in vars(module).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    for name, value in attributes.items():
        if value >= 0 and math.isclose(value, measured, rel_tol=1e-3):
            other = 4 * value or 1e-6
            if math.isclose(measure(with_attribute(module, name, other)), other, rel_tol=1e-3):
                return value, name
    epsilon = torch.finfo(torch.float32).eps
    for value in (0.0, float(f"{measured:.1e}"), epsilon):
        if math.isclose(value, measured, rel_tol=1e-3):
            return value, None
    raise Left(f"its eps of about {measured:.3g} is neither an attribute nor a number of two digits")


def close_with_gradients(theirs: Tensor, ours: Tensor, inputs: list[Tensor], dy: Tensor) -> bool:
    """Whether results that require grad agree roughly, and their gradients, which may be large."""
    if not theirs.requires_grad or not torch.allclose(theirs, ours, rtol=GRADIENT_TOLERANCE, atol=GRADIENT_TOLERANCE):
        return False
    for scale in (1, 1e6):
        g, h = (
            torch.autograd.grad(y, inputs, scale * dy, allow_unused=True, retain_graph=True) for y in (theirs, ours)
        )
        for a, b in zip(g, h, strict=True):
            if a is None or b is None or not (a - b).abs().max() <= GRADIENT_TOLERANCE * b.abs().max():
                return False
    return True


def alike(ours: Tensor, theirs: Tensor, *dtypes: torch.dtype) -> bool:
    """Whether two results of arguments of these dtypes are equal, except at a few ties."""
    if ours.dtype != theirs.dtype:
        return False
    a, b = ours.double(), theirs.double()
    difference = (a - b).abs()
    size = torch.maximum(a.abs(), b.abs())
    if ours.dtype == torch.float32:
        return bool((difference <= TOLERANCE * (size + size.amax(-1, keepdim=True))).all())
    unit = max(torch.finfo(t).eps for t in (*dtypes, ours.dtype))
    cancelled = TOLERANCE * size.amax(-1, keepdim=True)  # what a bias leaves of a result
    return bool((difference <= unit * size + cancelled).all() and (difference > 0).double().mean() <= DIFFERING)


def verified_pairs(
    convention: Convention | GatedConvention, pairs: Iterable[Pair], sample: Callable[..., Sample]
) -> tuple[tuple[Pair, str], ...]:
    """Those of the pairs of dtypes for which an order of rounding gives the module's results, with the first one.

    ``sample`` takes a pair.
    """
    found = []
    for pair in pairs:
        try:
            theirs, tensors = sample(*pair)
        except Exception:  # a mixture that the module does not take: it says so itself
            continue
        for order in convention.orders:
            if alike(convention.compute(*tensors, order, convention.eps), theirs, *pair):
                found.append((pair, order))
                break
    return tuple(found)
