"""LayerNorm: equations (2) and (3) of the paper and its derivatives."""

import numpy as np

from rmsnorm.reference.rows import QUIET, Array, exponent, gain_of, over_rows, scaled, wide, with_root


def _layer_parts(a: Array, eps: float) -> tuple[Array, Array, Array]:
    """x̂ = (a − μ)/σ, and σ = ρ·2^e with its ρ and e."""
    root = np.sqrt(np.asarray(eps, a.dtype))
    e = exponent(with_root(a, root))
    c = np.ldexp(a, -e)
    c = c - np.mean(c, axis=-1, keepdims=True)
    c = c - np.mean(c, axis=-1, keepdims=True)  # what the rounding of the first mean left over
    rho = np.sqrt(np.mean(c**2, axis=-1, keepdims=True) + np.ldexp(root, -e) ** 2)
    return c / rho, rho, e


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
    with np.errstate(**QUIET):
        a, g, b = wide(a, g, b)
        y = _layer_parts(a, eps)[0] * gain_of(g, a)
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
    with np.errstate(**QUIET):
        u, a, g = wide(u, a, g)
        x_hat, rho, e = _layer_parts(a, eps)
        unit, f = scaled(u)
        v = unit * gain_of(g, a)
        da = v - np.mean(v, axis=-1, keepdims=True) - x_hat * np.mean(x_hat * v, axis=-1, keepdims=True)
        return np.ldexp(da / rho, f - e), over_rows(u * x_hat, g), over_rows(u, g)


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
    with np.errstate(**QUIET):
        da, a, g, dg, db = wide(da, a, g, dg, db)
        x_hat, rho, e = _layer_parts(a, eps)
        unit, f = scaled(da)
        turned = unit - np.mean(unit, axis=-1, keepdims=True) - x_hat * np.mean(x_hat * unit, axis=-1, keepdims=True)
        dy = np.ldexp(turned / rho, f - e) * gain_of(g, a)
        if dg is not None:
            dy = dy + x_hat * dg
        return dy if db is None else dy + db
