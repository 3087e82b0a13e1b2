"""What all norms of the oracle have in common: wide types, exact scaling of rows, the gain, sums over rows."""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

QUIET: dict[str, Any] = {"over": "ignore", "under": "ignore", "divide": "ignore", "invalid": "ignore"}


def wide(*arrays: Array | None) -> list[Any]:
    """The arrays in float64, or in longdouble if one of them is; None stays None."""
    found = [None if x is None else np.asarray(x) for x in arrays]
    dtype = np.longdouble if any(x is not None and x.dtype == np.longdouble for x in found) else np.float64
    return [None if x is None else x.astype(dtype) for x in found]


def exponent(x: Array) -> Array:
    """For each row the e with max|x| in [2^(e-1), 2^e): shape (..., 1); 0 where the row is zero or not finite."""
    largest = np.max(np.abs(x), axis=-1, keepdims=True, initial=0.0)
    return np.frexp(np.where(np.isfinite(largest), largest, 0.0))[1]


def scaled(x: Array) -> tuple[Array, Array]:
    """Rows scaled by 2^-e so that the largest element lies in [1/2, 1), and e."""
    e = exponent(x)
    return np.ldexp(x, -e), e


def with_root(x: Array, root: Array) -> Array:
    """Rows lengthened by √eps: the scale of a statistic is set by its elements or by eps, whichever is the larger."""
    return np.concatenate([x, np.broadcast_to(root, (*x.shape[:-1], 1))], axis=-1)


def gain_of(g: Array | None, like: Array, zero_centered: bool = False) -> Array:
    n = like.shape[-1]
    if g is None:
        return np.ones(n, like.dtype)
    if g.shape != (n,) and (g.ndim != 2 or g.shape != like.shape[-2:]):
        raise ValueError(f"the gain must have shape {(n,)}, the length of the rows, or (heads, {n}), but has {g.shape}")
    return 1 + g if zero_centered else g


def over_rows(x: Array, g: Array | None) -> Array:
    """The sum over the rows; over those of each head, where the gain has heads."""
    return np.sum(x, axis=tuple(range(x.ndim - (1 if g is None else g.ndim))))
