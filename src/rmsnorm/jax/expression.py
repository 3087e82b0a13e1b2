"""The norms in ``jax.numpy``: other devices than CPUs, forward mode, and derivatives of derivatives.

JAX differentiates these to any order. Each row is multiplied by a power of two, which is exact, so that its squares
and the powers of 1/RMS in derivatives stay in range (rmsnorm/torch/norm/composite.py says more).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rmsnorm.jax.norm import Names, Norm, compute_dtype

Array = jax.Array


def _power(e: Array, dtype: Any) -> Array:
    """2^e, exactly (XLA's exp2 is not), for e of normal numbers."""
    bits, mantissa, bias = (jnp.int64, 52, 1023) if dtype == jnp.float64 else (jnp.int32, 23, 127)
    return lax.bitcast_convert_type((e.astype(bits) + bias) << mantissa, dtype)


def _exponent(largest: Array) -> Array:
    """e such that 2^-e brings ``largest`` to between 1/4 and 1/2; 2 for zero, infinity and NaN."""
    usable = jnp.isfinite(largest) & (largest > 0)
    return jnp.frexp(jnp.where(usable, largest, 1))[1] + 1


def _most(dtype: Any) -> int:
    """2^±most and everything between are normal numbers."""
    return 1022 if dtype == jnp.float64 else 126


def _largest(x: Array) -> Array:
    return lax.stop_gradient(jnp.max(jnp.abs(x), -1, keepdims=True))


def _rms(x: Array, k: int, eps: float) -> Array:
    most, root = _most(x.dtype), jnp.asarray(eps**0.5, x.dtype)
    e = jnp.clip(-_exponent(jnp.maximum(_largest(x[..., :k]), root)), -most, most)
    scale = _power(e, x.dtype)
    x = x * scale
    return x * lax.rsqrt(jnp.mean(jnp.square(x[..., :k]), -1, keepdims=True) + jnp.square(root * scale))


def _layer(x: Array, k: int, eps: float) -> Array:
    """A row is scaled twice: so that its sum stays in range, and then by what is left of it. The mean is corrected for
    its own rounding, and once more for that of the sum of the two."""
    most, root = _most(x.dtype), jnp.asarray(eps**0.5, x.dtype)
    first = jnp.clip(-_exponent(_largest(x)), -most // 2, most // 2)
    x = x * _power(first, x.dtype)
    mean = jnp.mean(x, -1, keepdims=True)
    x = x - (mean + jnp.mean(x - mean, -1, keepdims=True))
    x = x - jnp.mean(x, -1, keepdims=True)
    both = first - _exponent(jnp.maximum(_largest(x), root * _power(first, x.dtype)))
    both = jnp.clip(both, jnp.maximum(-most, first - most), jnp.minimum(most, first + most))
    x = x * _power(both - first, x.dtype)
    variance = jnp.mean(jnp.square(x), -1, keepdims=True)
    return x * lax.rsqrt(variance + jnp.square(root * _power(both, x.dtype)))


def stored(x: Array) -> Array:
    """x, rounded to its dtype: XLA may keep more digits of 16-bit numbers between operations."""
    return lax.optimization_barrier(x) if x.dtype.itemsize == 2 else x


def norm(*arrays: Array, names: Names, norm: Norm) -> tuple[Array, ...]:
    """(y,) of x, and (y, sum) where there is a residual."""
    given = dict(zip(names, arrays, strict=True))
    x = stored(given["x"] + given["residual"]) if "residual" in given else given["x"]
    dtype = compute_dtype(x.dtype)
    y = (_rms if norm.kind == "rms" else _layer)(x.astype(dtype), norm.k, norm.eps) if x.size else x.astype(dtype)
    if "weight" in given:
        gain = given["weight"].astype(dtype)[:, None]
        y = y * (1 + gain if norm.zero_centered else gain)
    if "bias" in given:
        y = y + given["bias"].astype(dtype)[:, None]
    y = y.astype(x.dtype)
    return (y, x) if "residual" in given else (y,)


def tangent(*arrays: Array, names: Names, norm: Norm, sums: bool) -> tuple[Array, ...]:
    """(dy,) along the tangents of x, weight and bias that are given; with ``sums`` (dy, the tangent of x)."""
    given = dict(zip(names, arrays, strict=True))
    along: dict[str, Array] = {name: given[f"d{name}"] for name in ("x", "weight", "bias") if f"d{name}" in given}
    fixed: dict[str, Array] = {name: given[name] for name in ("x", "weight", "bias") if name in given}
    _, dy = jax.jvp(lambda moved: _y(fixed | moved, norm), ({name: fixed[name] for name in along},), (along,))
    return (dy, along["x"]) if sums else (dy,)


def backward(*arrays: Array, names: Names, norm: Norm, wants: Names) -> tuple[Array, ...]:
    """The gradients ``wants`` of "dx" (plus ``plus`` where that is given), "dweight" and "dbias"."""
    given = dict(zip(names, arrays, strict=True))
    of = [name.removeprefix("d") for name in wants]
    fixed: dict[str, Array] = {name: given[name] for name in ("x", "weight", "bias") if name in given}
    _, pull = jax.vjp(lambda moved: _y(fixed | moved, norm), {name: fixed[name] for name in of})
    (found,) = pull(given["dy"])
    if "plus" in given:
        found["x"] = found["x"] + given["plus"]
    return tuple(found[name] for name in of)


def _y(given: dict[str, Array], of: Norm) -> Array:
    return norm(*given.values(), names=tuple(given), norm=of)[0]
