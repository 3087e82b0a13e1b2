"""What is built on RMSNorm: a SiLU gate, eight-bit results (also of a residual sum)."""

import numpy as np

from rmsnorm.reference.residual import add_rms_norm
from rmsnorm.reference.rms import rms_norm, rms_norm_vjp
from rmsnorm.reference.rows import QUIET, Array, wide


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
        norm_before_gate: normalise first, then multiply by the gate.
        groups: the number of parts that a row is split into; each has its own statistic.

    Returns:
        y, shape of a, in float64 (longdouble if an argument is).

    Source: Dao & Gu, "Transformers are SSMs" (2024); the norm itself is the paper's equation (4).
    """
    with np.errstate(**QUIET):
        a, z, g = wide(a, z, g)
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
    with np.errstate(**QUIET):
        u, a, z, g = wide(u, a, z, g)
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
    return _in_steps(rms_norm(a, g, k=k, eps=eps), most)


def add_rms_norm_quantized(
    a: Array, residual: Array, g: Array | None = None, *, k: int | None = None, eps: float, most: float
) -> tuple[Array, Array, Array]:
    """s = a + residual, rounded to the residual's own dtype, and rms_norm(s) in steps of scale = max|y| / most.

    Args:
        a, residual, g, k, eps: as for :func:`add_rms_norm`.
        most: the largest code.

    Returns:
        (y / scale, scale, s): the first two as :func:`rms_norm_quantized` returns them, s as :func:`add_rms_norm`.

    Source: symmetric quantisation with a scale for each row, of the norm in a pre-norm residual network.
    """
    y, s = add_rms_norm(a, residual, g, k=k, eps=eps)
    return *_in_steps(y, most), s


def _in_steps(y: Array, most: float) -> tuple[Array, Array]:
    with np.errstate(**QUIET):
        scale = np.max(np.abs(y), axis=-1, keepdims=True, initial=0.0) / most
        return np.where(scale > 0, y / scale, 0.0), scale
