"""RMSNorm and pRMSNorm: equation (4) of the paper and its derivatives."""

import numpy as np

from rmsnorm.reference.rows import QUIET, Array, exponent, gain_of, over_rows, scaled, wide, with_root


def _rms_parts(a: Array, k: int | None, eps: float) -> tuple[Array, Array, Array, int]:
    """x̂ = a/r, and r = ρ·2^e with its ρ and e: what forward, vjp and jvp have in common."""
    n = a.shape[-1]
    k = n if k is None else k
    if not 0 < k <= n:
        raise ValueError(f"k must lie in 1..n = {n}, the elements that the RMS is taken over, but is {k}")
    root = np.sqrt(np.asarray(eps, a.dtype))
    e = exponent(with_root(a[..., :k], root))
    c = np.ldexp(a[..., :k], -e)
    rho = np.sqrt(np.mean(c**2, axis=-1, keepdims=True) + np.ldexp(root, -e) ** 2)
    mantissa, own = np.frexp(a)  # each element by its own exponent: none is lost where another sets the row's scale
    return np.ldexp(mantissa / rho, own - e), rho, e, k


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
    with np.errstate(**QUIET):
        a, g, b = wide(a, g, b)
        x_hat = _rms_parts(a, k, eps)[0]
        y = x_hat * gain_of(g, a, zero_centered)
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
    with np.errstate(**QUIET):
        u, a, g = wide(u, a, g)
        x_hat, rho, e, k = _rms_parts(a, k, eps)
        unit, f = scaled(u)
        v = unit * gain_of(g, a, zero_centered)
        projected = np.sum(x_hat * v, axis=-1, keepdims=True) / k
        da = v.copy()
        da[..., :k] -= x_hat[..., :k] * projected
        return np.ldexp(da / rho, f - e), over_rows(u * x_hat, g), over_rows(u, g)


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
    with np.errstate(**QUIET):
        da, a, g, dg, db = wide(da, a, g, dg, db)
        x_hat, rho, e, k = _rms_parts(a, k, eps)
        unit, f = scaled(da)
        projected = np.sum(x_hat[..., :k] * unit[..., :k], axis=-1, keepdims=True) / k
        dy = np.ldexp((unit - x_hat * projected) / rho, f - e) * gain_of(g, a, zero_centered)
        if dg is not None:
            dy = dy + x_hat * dg
        return dy if db is None else dy + db
