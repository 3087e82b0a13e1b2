"""RMSNorm of a query or a key, and the rotary position embedding of the result."""

import numpy as np

from rmsnorm.reference.rms import rms_norm, rms_norm_vjp
from rmsnorm.reference.rows import QUIET, Array, wide


def _rotated(y: Array, cos: Array, sin: Array) -> Array:
    """y in rotary coordinates: c ⊙ y + s ⊙ Jy, with J(y1, y2) = (−y2, y1) of the halves of the first elements."""
    width = cos.shape[-1]
    turned, rest = y[..., :width], y[..., width:]
    a, b = np.split(turned, 2, axis=-1)
    return np.concatenate([turned * cos + np.concatenate([-b, a], axis=-1) * sin, rest], axis=-1)


def rms_norm_rotary(
    a: Array, cos: Array, sin: Array, g: Array | None = None, *, eps: float, zero_centered: bool = False
) -> Array:
    """y = cos ⊙ h + sin ⊙ Jh for the first elements of h = rms_norm(a), and h for the others.

    J(h1, h2) = (−h2, h1), h1 and h2 the halves of those elements.

    Args:
        a: query or key, (..., n).
        cos, sin: (..., r), an even r ≤ n; they broadcast to the rows of a.
        g, eps, zero_centered: as for :func:`rms_norm`.

    Returns:
        y, shape of a, in float64 (longdouble if an argument is).

    Source: Su et al., "RoFormer" (2021), §3.4.2, for coordinates paired as (i, i + r/2); the paper's equation (4).
    """
    with np.errstate(**QUIET):
        a, cos, sin, g = wide(a, cos, sin, g)
        return _rotated(rms_norm(a, g, eps=eps, zero_centered=zero_centered), cos, sin)


def rms_norm_rotary_vjp(
    u: Array, a: Array, cos: Array, sin: Array, g: Array | None = None, *, eps: float, zero_centered: bool = False
) -> tuple[Array, Array]:
    """Gradients of rms_norm_rotary: those of rms_norm at cos ⊙ u − J(sin ⊙ u), as J's transpose is −J.

    Args:
        u: gradient at the output, shape of a.
        a, cos, sin, g, eps, zero_centered: as given to :func:`rms_norm_rotary`.

    Returns:
        (da, dg): shape of a, and of the gain, in float64 (longdouble if an argument is).

    Source: paper §4.2 and the chain rule.
    """
    with np.errstate(**QUIET):
        u, a, cos, sin, g = wide(u, a, cos, sin, g)
        width = cos.shape[-1]
        first, second = np.split(u[..., :width] * sin, 2, axis=-1)
        back = u[..., :width] * cos - np.concatenate([-second, first], axis=-1)
        v = np.concatenate([back, u[..., width:]], axis=-1)
        return rms_norm_vjp(v, a, g, eps=eps, zero_centered=zero_centered)[:2]
