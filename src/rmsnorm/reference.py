"""The oracle: RMSNorm, pRMSNorm and LayerNorm in NumPy and float64, with their derivatives, in the paper's notation.

Made to be read and to be right, not to be fast; tests, benchmarks and analyses check everything else against it.
Notation of Zhang & Sennrich, "Root Mean Square Layer Normalization" (NeurIPS 2019), §3, §3.1 and §4.2:

    a  the summed inputs, shape (..., n); the last axis is normalised, every row on its own
    g  the gain and b the bias, shape (n,); none means ones and zeros
    k  how many leading elements the RMS is taken over (pRMSNorm); none means all n
    u  the gradient that arrives at the output; d* is a tangent (jvp) or a gradient (vjp) of *

Conventions shared by all functions:

- eps stands inside the root: r = √(mean(a²) + eps). A zero-centred gain multiplies by 1 + g.
- Gain and bias may also have shape (heads, n), where a has (..., heads, n): one for each head. Their gradients then
  have that shape, both of them, by the gain's (which may be all ones).
- Arguments of any floating dtype are converted to float64 and float64 is returned. If one of them is ``longdouble``,
  everything is done in that type: the reference for float64 kernels where the platform has a wider type.
- Rows, and the gradients and tangents that go with them, are first scaled by a power of two, which is exact: no
  finite row overflows or underflows on the way, and a result is infinite only where it is too large to be represented.
- Infinities and NaN follow IEEE arithmetic: an infinite statistic makes its row 0, and NaN where a is infinite; a row
  of zeros at eps = 0 is 0/0 = NaN. The warnings that NumPy gives for these are silenced.
"""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

_QUIET: dict[str, Any] = {"over": "ignore", "under": "ignore", "divide": "ignore", "invalid": "ignore"}

__all__ = [
    "add_rms_norm",
    "add_rms_norm_jvp",
    "add_rms_norm_vjp",
    "layer_norm",
    "layer_norm_jvp",
    "layer_norm_vjp",
    "rms_norm",
    "rms_norm_gated",
    "rms_norm_gated_vjp",
    "rms_norm_jvp",
    "rms_norm_quantized",
    "rms_norm_vjp",
]


def _wide(*arrays: Array | None) -> list[Any]:
    """The arrays in float64, or in longdouble if one of them is; None stays None."""
    found = [None if x is None else np.asarray(x) for x in arrays]
    dtype = np.longdouble if any(x is not None and x.dtype == np.longdouble for x in found) else np.float64
    return [None if x is None else x.astype(dtype) for x in found]


def _exponent(x: Array) -> Array:
    """For each row the e with max|x| in [2^(e-1), 2^e): shape (..., 1); 0 where the row is zero or not finite."""
    largest = np.max(np.abs(x), axis=-1, keepdims=True, initial=0.0)
    return np.frexp(np.where(np.isfinite(largest), largest, 0.0))[1]


def _scaled(x: Array) -> tuple[Array, Array]:
    """Rows scaled by 2^-e so that the largest element lies in [1/2, 1), and e."""
    e = _exponent(x)
    return np.ldexp(x, -e), e


def _with_root(x: Array, root: Array) -> Array:
    """Rows lengthened by √eps: the scale of a statistic is set by its elements or by eps, whichever is the larger."""
    return np.concatenate([x, np.broadcast_to(root, (*x.shape[:-1], 1))], axis=-1)


def _gain(g: Array | None, like: Array, zero_centered: bool = False) -> Array:
    n = like.shape[-1]
    if g is None:
        return np.ones(n, like.dtype)
    if g.shape != (n,) and (g.ndim != 2 or g.shape != like.shape[-2:]):
        raise ValueError(f"the gain must have shape {(n,)}, the length of the rows, or (heads, {n}), but has {g.shape}")
    return 1 + g if zero_centered else g


def _rms_parts(a: Array, k: int | None, eps: float) -> tuple[Array, Array, Array, int]:
    """x̂ = a/r, and r = ρ·2^e with its ρ and e: what forward, vjp and jvp have in common."""
    n = a.shape[-1]
    k = n if k is None else k
    if not 0 < k <= n:
        raise ValueError(f"k must lie in 1..n = {n}, the elements that the RMS is taken over, but is {k}")
    root = np.sqrt(np.asarray(eps, a.dtype))
    e = _exponent(_with_root(a[..., :k], root))
    c = np.ldexp(a[..., :k], -e)
    rho = np.sqrt(np.mean(c**2, axis=-1, keepdims=True) + np.ldexp(root, -e) ** 2)
    mantissa, own = np.frexp(a)  # each element by its own exponent: none is lost where another sets the row's scale
    return np.ldexp(mantissa / rho, own - e), rho, e, k


def _layer_parts(a: Array, eps: float) -> tuple[Array, Array, Array]:
    """x̂ = (a − μ)/σ, and σ = ρ·2^e with its ρ and e."""
    root = np.sqrt(np.asarray(eps, a.dtype))
    e = _exponent(_with_root(a, root))
    c = np.ldexp(a, -e)
    c = c - np.mean(c, axis=-1, keepdims=True)
    c = c - np.mean(c, axis=-1, keepdims=True)  # what the rounding of the first mean left over
    rho = np.sqrt(np.mean(c**2, axis=-1, keepdims=True) + np.ldexp(root, -e) ** 2)
    return c / rho, rho, e


def _over_rows(x: Array, g: Array | None) -> Array:
    """The sum over the rows; over those of each head, where the gain has heads."""
    return np.sum(x, axis=tuple(range(x.ndim - (1 if g is None else g.ndim))))


def rms_norm(
    a: Array,
    g: Array | None = None,
    b: Array | None = None,
    *,
    k: int | None = None,
    eps: float,
    zero_centered: bool = False,
) -> Array:
    """RMSNorm, and with k < n pRMSNorm: y = a / r ⊙ g + b with r = √(1/k Σ_{i≤k} a_i² + eps).

    Args:
        a: summed inputs, (..., n).
        g: gain, (n,); none means ones.
        b: bias, (n,); none means zeros.
        k: how many leading elements the statistic is taken over, 1..n; none means n.
        eps: added inside the root, at least 0.
        zero_centered: the gain is 1 + g.

    Returns:
        y, shape of a, in float64 (longdouble if an argument is).

    Source: paper §3, equation (4); §3.1 for k; Gemma for the zero-centred gain.
    """
    with np.errstate(**_QUIET):
        a, g, b = _wide(a, g, b)
        x_hat = _rms_parts(a, k, eps)[0]
        y = x_hat * _gain(g, a, zero_centered)
        return y if b is None else y + b


def rms_norm_vjp(
    u: Array,
    a: Array,
    g: Array | None = None,
    *,
    k: int | None = None,
    eps: float,
    zero_centered: bool = False,
) -> tuple[Array, Array, Array]:
    """Gradients of rms_norm: da = 1/r (v − m ⊙ x̂ (x̂·v)/k) with x̂ = a/r, v = g ⊙ u and m the mask of the first k.

    dg = Σ_rows u ⊙ x̂ and db = Σ_rows u.

    Args:
        u: gradient at the output, shape of a.
        a, g, k, eps, zero_centered: as given to :func:`rms_norm`.

    Returns:
        (da, dg, db): shape of a, (n,) and (n,), in float64 (longdouble if an argument is). dg and db are there
        whether or not the forward had a gain or a bias.

    Source: paper §4.2; the mask of pRMSNorm follows by the same differentiation.
    """
    with np.errstate(**_QUIET):
        u, a, g = _wide(u, a, g)
        x_hat, rho, e, k = _rms_parts(a, k, eps)
        unit, f = _scaled(u)
        v = unit * _gain(g, a, zero_centered)
        projected = np.sum(x_hat * v, axis=-1, keepdims=True) / k
        da = v.copy()
        da[..., :k] -= x_hat[..., :k] * projected
        return np.ldexp(da / rho, f - e), _over_rows(u * x_hat, g), _over_rows(u, g)


def rms_norm_jvp(
    da: Array,
    a: Array,
    g: Array | None = None,
    dg: Array | None = None,
    db: Array | None = None,
    *,
    k: int | None = None,
    eps: float,
    zero_centered: bool = False,
) -> Array:
    """The derivative of rms_norm along (da, dg, db): dy = g/r ⊙ (da − x̂ (x̂·(m ⊙ da))/k) + x̂ ⊙ dg + db.

    Args:
        da: tangent of a, shape of a.
        a, g, k, eps, zero_centered: as given to :func:`rms_norm`.
        dg, db: tangents of gain and bias, (n,); none means zeros.

    Returns:
        dy, shape of a, in float64 (longdouble if an argument is).

    Source: paper §4.2, the matrix R = (1/r)(I − a aᵀ/(n r²)) applied from the left.
    """
    with np.errstate(**_QUIET):
        da, a, g, dg, db = _wide(da, a, g, dg, db)
        x_hat, rho, e, k = _rms_parts(a, k, eps)
        unit, f = _scaled(da)
        projected = np.sum(x_hat[..., :k] * unit[..., :k], axis=-1, keepdims=True) / k
        dy = np.ldexp((unit - x_hat * projected) / rho, f - e) * _gain(g, a, zero_centered)
        if dg is not None:
            dy = dy + x_hat * dg
        return dy if db is None else dy + db


def layer_norm(a: Array, g: Array | None = None, b: Array | None = None, *, eps: float) -> Array:
    """LayerNorm: y = (a − μ)/σ ⊙ g + b with μ = 1/n Σ a_i and σ = √(1/n Σ (a_i − μ)² + eps).

    Args:
        a: summed inputs, (..., n).
        g, b: gain and bias, (n,); none means ones and zeros.
        eps: added inside the root, at least 0.

    Returns:
        y, shape of a, in float64 (longdouble if an argument is).

    Source: paper §2, equations (2) and (3), after Ba, Kiros & Hinton (2016).
    """
    with np.errstate(**_QUIET):
        a, g, b = _wide(a, g, b)
        y = _layer_parts(a, eps)[0] * _gain(g, a)
        return y if b is None else y + b


def layer_norm_vjp(u: Array, a: Array, g: Array | None = None, *, eps: float) -> tuple[Array, Array, Array]:
    """Gradients of layer_norm: da = 1/σ (v − mean(v) − x̂ mean(x̂ ⊙ v)) with v = g ⊙ u.

    dg = Σ_rows u ⊙ x̂ and db = Σ_rows u.

    Args:
        u: gradient at the output, shape of a.
        a, g, eps: as given to :func:`layer_norm`.

    Returns:
        (da, dg, db): shape of a, (n,) and (n,), in float64 (longdouble if an argument is).

    Source: derived from equations (2) and (3) of the paper's §2.
    """
    with np.errstate(**_QUIET):
        u, a, g = _wide(u, a, g)
        x_hat, rho, e = _layer_parts(a, eps)
        unit, f = _scaled(u)
        v = unit * _gain(g, a)
        da = v - np.mean(v, axis=-1, keepdims=True) - x_hat * np.mean(x_hat * v, axis=-1, keepdims=True)
        return np.ldexp(da / rho, f - e), _over_rows(u * x_hat, g), _over_rows(u, g)


def layer_norm_jvp(
    da: Array,
    a: Array,
    g: Array | None = None,
    dg: Array | None = None,
    db: Array | None = None,
    *,
    eps: float,
) -> Array:
    """The derivative of layer_norm along (da, dg, db): dy = g/σ ⊙ (da − mean(da) − x̂ mean(x̂ ⊙ da)) + x̂ ⊙ dg + db.

    Args:
        da: tangent of a, shape of a.
        a, g, eps: as given to :func:`layer_norm`.
        dg, db: tangents of gain and bias, (n,); none means zeros.

    Returns:
        dy, shape of a, in float64 (longdouble if an argument is).

    Source: derived from equations (2) and (3) of the paper's §2.
    """
    with np.errstate(**_QUIET):
        da, a, g, dg, db = _wide(da, a, g, dg, db)
        x_hat, rho, e = _layer_parts(a, eps)
        unit, f = _scaled(da)
        turned = unit - np.mean(unit, axis=-1, keepdims=True) - x_hat * np.mean(x_hat * unit, axis=-1, keepdims=True)
        dy = np.ldexp(turned / rho, f - e) * _gain(g, a)
        if dg is not None:
            dy = dy + x_hat * dg
        return dy if db is None else dy + db


def add_rms_norm(
    a: Array,
    residual: Array,
    g: Array | None = None,
    b: Array | None = None,
    *,
    k: int | None = None,
    eps: float,
    zero_centered: bool = False,
) -> tuple[Array, Array]:
    """The sum of a residual stream and its norm: s = a + residual, y = rms_norm(s).

    s is rounded to the residual's own dtype before the statistic is taken, as it is when the sum is stored and then
    normalised by a second call.

    Args:
        a: what is added to the stream, (..., n).
        residual: the stream, shape of a.
        g, b, k, eps, zero_centered: as for :func:`rms_norm`.

    Returns:
        (y, s), each of a's shape, in float64 (longdouble if an argument is); every element of s is a number of the
        residual's dtype.

    Source: pre-norm residual networks; the norm itself is the paper's equation (4).
    """
    stream = np.asarray(residual)
    with np.errstate(**_QUIET):
        a, wide = _wide(a, stream)
        s = (a + wide).astype(stream.dtype).astype(a.dtype)
    return rms_norm(s, g, b, k=k, eps=eps, zero_centered=zero_centered), s


def add_rms_norm_vjp(
    u: Array,
    w: Array,
    s: Array,
    g: Array | None = None,
    *,
    k: int | None = None,
    eps: float,
    zero_centered: bool = False,
) -> tuple[Array, Array, Array]:
    """Gradients of add_rms_norm: ds = rms_norm_vjp(u, s) + w, and both a and the residual receive ds.

    The rounding of the sum is taken as the identity.

    Args:
        u: gradient at the normed output, shape of s.
        w: gradient at the new residual, shape of s.
        s: the sum that the forward returned, (..., n).
        g, k, eps, zero_centered: as given to :func:`add_rms_norm`.

    Returns:
        (ds, dg, db): shape of s, (n,) and (n,), in float64 (longdouble if an argument is).

    Source: paper §4.2 and the chain rule.
    """
    ds, dg, db = rms_norm_vjp(u, s, g, k=k, eps=eps, zero_centered=zero_centered)
    return ds + np.asarray(w).astype(ds.dtype), dg, db


def add_rms_norm_jvp(
    da: Array,
    dresidual: Array,
    s: Array,
    g: Array | None = None,
    dg: Array | None = None,
    db: Array | None = None,
    *,
    k: int | None = None,
    eps: float,
    zero_centered: bool = False,
) -> tuple[Array, Array]:
    """The derivative of add_rms_norm along (da, dresidual, dg, db): ds = da + dresidual, dy = rms_norm_jvp(ds, s).

    The rounding of the sum is taken as the identity.

    Args:
        da, dresidual: tangents of the two summands, shape of s.
        s: the sum that the forward returned, (..., n).
        g, k, eps, zero_centered: as given to :func:`add_rms_norm`.
        dg, db: tangents of gain and bias, (n,); none means zeros.

    Returns:
        (dy, ds), each of s's shape, in float64 (longdouble if an argument is).

    Source: paper §4.2 and the chain rule.
    """
    da, dresidual = _wide(da, dresidual)
    ds = da + dresidual
    return rms_norm_jvp(ds, s, g, dg, db, k=k, eps=eps, zero_centered=zero_centered), ds


def _silu(z: Array) -> tuple[Array, Array]:
    """z σ(z) and its derivative σ(z) (1 + z σ(−z)), σ(z) = 1/(1 + e^-z)."""
    t = np.exp(-np.abs(z))
    small, large = t / (1 + t), 1 / (1 + t)
    at, rest = np.where(z < 0, small, large), np.where(z < 0, large, small)
    return z * at, at * (1 + z * rest)


def _grouped(x: Array, groups: int) -> Array:
    """(..., n) as (..., groups, n / groups): rows of their own, whose gain is that of a head."""
    return x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)


def rms_norm_gated(
    a: Array,
    z: Array,
    g: Array | None = None,
    *,
    k: int | None = None,
    eps: float,
    norm_before_gate: bool = False,
    groups: int = 1,
) -> Array:
    """y = rms_norm(a ⊙ silu(z)) or, with norm_before_gate, rms_norm(a) ⊙ silu(z), silu(z) = z / (1 + e^-z).

    Args:
        a: summed inputs, (..., n).
        z: the gate, shape of a.
        g: gain, (n,); none means ones.
        k: how many leading elements of each group the statistic is taken over; none means all.
        eps: added inside the root, at least 0.
        norm_before_gate: whether the gate multiplies what is normalised already.
        groups: a row is split into so many, each with a statistic of its own.

    Returns:
        y, shape of a, in float64 (longdouble if an argument is).

    Source: Dao & Gu, "Transformers are SSMs" (2024); the norm itself is the paper's equation (4).
    """
    with np.errstate(**_QUIET):
        a, z, g = _wide(a, z, g)
        s = _silu(z)[0]
        h, gain = a if norm_before_gate else a * s, None if g is None else _grouped(g, groups)
        y = rms_norm(_grouped(h, groups), gain, k=k, eps=eps)
        return y.reshape(a.shape) * s if norm_before_gate else y.reshape(a.shape)


def rms_norm_gated_vjp(
    u: Array,
    a: Array,
    z: Array,
    g: Array | None = None,
    *,
    k: int | None = None,
    eps: float,
    norm_before_gate: bool = False,
    groups: int = 1,
) -> tuple[Array, Array, Array]:
    """Gradients of rms_norm_gated: with h = a ⊙ silu(z) and dh = rms_norm_vjp(u, h), da = dh ⊙ silu(z) and
    dz = dh ⊙ a ⊙ silu'(z); with norm_before_gate da = rms_norm_vjp(u ⊙ silu(z), a) and dz = u ⊙ rms_norm(a) ⊙ silu'(z).

    Args:
        u: gradient at the output, shape of a.
        a, z, g, k, eps, norm_before_gate, groups: as given to :func:`rms_norm_gated`.

    Returns:
        (da, dz, dg): shape of a twice, and (n,), in float64 (longdouble if an argument is).

    Source: paper §4.2 and the chain rule.
    """
    with np.errstate(**_QUIET):
        u, a, z, g = _wide(u, a, z, g)
        s, slope = _silu(z)
        h, v = (a, u * s) if norm_before_gate else (a * s, u)
        gain = _grouped(np.ones(a.shape[-1], a.dtype) if g is None else g, groups)
        dh, dg, _ = rms_norm_vjp(_grouped(v, groups), _grouped(h, groups), gain, k=k, eps=eps)
        dh = dh.reshape(a.shape)
        if norm_before_gate:
            y = rms_norm(_grouped(a, groups), gain, k=k, eps=eps).reshape(a.shape)
            return dh, u * y * slope, dg.reshape(-1)
        return dh * s, dh * a * slope, dg.reshape(-1)


def rms_norm_quantized(
    a: Array, g: Array | None = None, *, k: int | None = None, eps: float, most: float
) -> tuple[Array, Array]:
    """y = rms_norm(a) in steps of scale = max|y| / most, one for each row.

    Args:
        a, g, k, eps: as for :func:`rms_norm`.
        most: the largest code.

    Returns:
        (y / scale, scale), not rounded: shape of a, and (..., 1). A row of zeros has scale 0 and quotients 0.

    Source: symmetric quantisation with a scale for each row.
    """
    with np.errstate(**_QUIET):
        y = rms_norm(a, g, k=k, eps=eps)
        scale = np.max(np.abs(y), axis=-1, keepdims=True, initial=0.0) / most
        return np.where(scale > 0, y / scale, 0.0), scale
