"""A residual sum and RMSNorm of it."""

import numpy as np

from rmsnorm.reference.rms import rms_norm, rms_norm_jvp, rms_norm_vjp
from rmsnorm.reference.rows import QUIET, Array, wide


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
    with np.errstate(**QUIET):
        a, exact = wide(a, stream)
        s = (a + exact).astype(stream.dtype).astype(a.dtype)
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
    da, dresidual = wide(da, dresidual)
    ds = da + dresidual
    return rms_norm_jvp(ds, s, g, dg, db, k=k, eps=eps, zero_centered=zero_centered), ds
