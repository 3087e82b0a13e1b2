"""What the modules of this package pass to each other: which norm, and of which arrays.

Rows have the shape (groups, rows, heads, n) and parameters (groups, heads, n): row (g, r, h) is multiplied by gain
(g, h). A call has one group; ``vmap`` over gains, or over gradients of gains, makes more.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PARAMETERS = ("weight", "bias", "dweight", "dbias")
"""The arrays without a dimension of rows."""

Names = tuple[str, ...]
"""The arrays of an operation, in order: those that a call has."""


class Norm(NamedTuple):
    """A checked norm. Equal norms are equal, so that compiled functions are found again."""

    kind: str
    k: int
    eps: float
    zero_centered: bool


def compute_dtype(dtype: Any) -> Any:
    """float64 for float64, float32 for everything shorter."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


# JAX 0.8.0 has another name for the function, and up to 0.9 another for the attribute.
_vary = partial(jax.lax.pcast, to="varying") if hasattr(jax.lax, "pcast") else getattr(jax.lax, "pvary")  # noqa: B009


def _axes(aval: Any) -> frozenset[Any]:
    """The mesh axes that an array varies over."""
    return aval.manual_axis_type.varying if hasattr(aval, "manual_axis_type") else aval.vma


def varying_alike(arrays: list[Any]) -> list[Any]:
    """Within ``jax.shard_map``: all arrays varying over the mesh axes that one of them varies over.

    So a gain that every device has becomes one of each device, and the transpose of that is the sum over devices.
    """
    axes = [_axes(jax.typeof(a)) for a in arrays]
    union = frozenset().union(*axes)
    missing = [tuple(sorted(union - own)) for own in axes]
    return [_vary(a, m) if m else a for a, m in zip(arrays, missing, strict=True)]
