"""The oracle against what it does not compute itself: differences, exact arithmetic, and the closed forms of §4.2."""

from fractions import Fraction
from itertools import product

import mpmath
import numpy as np
import pytest

from rmsnorm import reference

RNG = np.random.default_rng(20191016)
CASES = [
    (n, k, eps, zero_centered)
    for n, k in [(1, 1), (2, 2), (7, 7), (7, 3), (32, 2)]
    for eps in (0.0, 1e-5)
    for zero_centered in (False, True)
]


def _draw(n, rows=3, scale=1.0):
    a, u = scale * RNG.standard_normal((rows, n)), RNG.standard_normal((rows, n))
    return a, u, RNG.standard_normal(n) + 0.5, RNG.standard_normal(n)


def _difference(function, argument, direction, h=1e-4):
    """Central difference of sixth order along a direction: truncation O(h⁶) and rounding O(2⁻⁵³/h) both near 1e-12."""
    weights = {1: 3 / 4, 2: -3 / 20, 3: 1 / 60}
    return (
        sum(
            w * (function(argument + i * h * direction) - function(argument - i * h * direction))
            for i, w in weights.items()
        )
        / h
    )


@pytest.mark.parametrize(("n", "k", "eps", "zero_centered"), CASES)
def test_rms_jvp_is_the_derivative(n, k, eps, zero_centered):
    a, da, g, b = _draw(n)
    dg, db = RNG.standard_normal((2, n))
    options = {"k": k, "eps": eps, "zero_centered": zero_centered}
    reach = np.min(np.sqrt(np.mean(a[:, :k] ** 2, -1))) / (1 + np.max(np.abs(da)))  # differences need h ≪ RMS

    def shifted(t):
        return reference.rms_norm(a + t * da, g + t * dg, b + t * db, **options)

    expected = _difference(shifted, 0.0, 1.0, h=0.01 * reach)
    actual = reference.rms_norm_jvp(da, a, g, dg, db, **options)
    np.testing.assert_allclose(actual, expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())


@pytest.mark.parametrize(("n", "eps"), list(product((2, 3, 33), (0.0, 1e-5))))
def test_layer_jvp_is_the_derivative(n, eps):
    a, da, g, b = _draw(n)
    dg, db = RNG.standard_normal((2, n))
    reach = np.min(np.std(a, -1)) / (1 + np.max(np.abs(da)))

    def shifted(t):
        return reference.layer_norm(a + t * da, g + t * dg, b + t * db, eps=eps)

    expected = _difference(shifted, 0.0, 1.0, h=0.01 * reach)
    actual = reference.layer_norm_jvp(da, a, g, dg, db, eps=eps)
    np.testing.assert_allclose(actual, expected, rtol=1e-8, atol=1e-8 * (1 + np.abs(expected).max()))


@pytest.mark.parametrize(("n", "k", "eps", "zero_centered"), CASES)
def test_rms_vjp_is_the_adjoint_of_jvp(n, k, eps, zero_centered):
    a, u, g, _ = _draw(n)
    da = RNG.standard_normal(a.shape)
    dg, db = RNG.standard_normal((2, n))
    options = {"k": k, "eps": eps, "zero_centered": zero_centered}
    pushed = np.vdot(u, reference.rms_norm_jvp(da, a, g, dg, db, **options))
    back = reference.rms_norm_vjp(u, a, g, **options)
    pulled = np.vdot(back[0], da) + np.vdot(back[1], dg) + np.vdot(back[2], db)
    assert pulled == pytest.approx(pushed, rel=1e-11, abs=1e-11)


@pytest.mark.parametrize(("n", "eps"), list(product((1, 2, 33), (0.0, 1e-5))))
def test_layer_vjp_is_the_adjoint_of_jvp(n, eps):
    if n == 1 and eps == 0.0:
        pytest.skip("the LayerNorm of one element at eps = 0 is 0/0")
    a, u, g, _ = _draw(n)
    da = RNG.standard_normal(a.shape)
    dg, db = RNG.standard_normal((2, n))
    pushed = np.vdot(u, reference.layer_norm_jvp(da, a, g, dg, db, eps=eps))
    back = reference.layer_norm_vjp(u, a, g, eps=eps)
    pulled = np.vdot(back[0], da) + np.vdot(back[1], dg) + np.vdot(back[2], db)
    assert pulled == pytest.approx(pushed, rel=1e-11, abs=1e-11)


def test_add_rms_norm_is_the_sum_and_its_norm():
    a, residual, g, b = _draw(9)
    u, w = RNG.standard_normal((2, 3, 9))
    options = {"k": 4, "eps": 1e-6, "zero_centered": True}
    y, s = reference.add_rms_norm(a, residual.astype(np.float32), g, b, **options)
    np.testing.assert_array_equal(s, (a + residual.astype(np.float32)).astype(np.float32))
    assert s.dtype == np.float64
    np.testing.assert_array_equal(y, reference.rms_norm(s, g, b, **options))
    da, dresidual, dg, db = *RNG.standard_normal((2, 3, 9)), *RNG.standard_normal((2, 9))
    dy, ds = reference.add_rms_norm_jvp(da, dresidual, s, g, dg, db, **options)
    back, back_g, back_b = reference.add_rms_norm_vjp(u, w, s, g, **options)
    pushed = np.vdot(u, dy) + np.vdot(w, ds)
    assert np.vdot(back, da + dresidual) + np.vdot(back_g, dg) + np.vdot(back_b, db) == pytest.approx(pushed, rel=1e-12)


@pytest.mark.parametrize("k", [16, 5])
def test_closed_forms_of_the_gradient(k):
    """PAPER §4.2 for v = Wx/RMS ⊙ g + b: R·a = 0, ⟨∂L/∂W, W⟩ = 0, no dependence on x's scale, 1/δ with W's."""
    weights, x, (_, u, g, _) = RNG.standard_normal((16, 8)), RNG.standard_normal((5, 8)), _draw(16, rows=5)

    def d_weights(weights, x):
        return reference.rms_norm_vjp(u, x @ weights.T, g, k=k, eps=0.0)[0].T @ x

    a = x @ weights.T
    size = np.abs(reference.rms_norm_jvp(RNG.standard_normal(a.shape), a, g, k=k, eps=0.0)).max()
    assert np.abs(reference.rms_norm_jvp(a, a, g, k=k, eps=0.0)).max() < 1e-13 * max(1.0, size)
    here = d_weights(weights, x)
    assert abs(np.vdot(here, weights)) < 1e-12 * np.linalg.norm(here) * np.linalg.norm(weights)
    for delta in (3.0, 1e-3, 1e4):
        np.testing.assert_allclose(d_weights(weights, delta * x), here, rtol=1e-10, atol=1e-11 * np.abs(here).max())
        np.testing.assert_allclose(
            d_weights(delta * weights, x) * delta, here, rtol=1e-10, atol=1e-11 * np.abs(here).max()
        )


def test_rms_equals_layer_norm_where_the_mean_is_zero():
    a, _, g, b = _draw(64)
    a -= a.mean(-1, keepdims=True)
    expected = reference.layer_norm(a, g, b, eps=1e-5)
    np.testing.assert_allclose(reference.rms_norm(a, g, b, eps=1e-5), expected, rtol=1e-12, atol=1e-14)


def test_exact_row():
    """(3, 4, 12, 84): squares sum to 7225 = 85², so that r = 85/2, and 5/√2 over the first two."""
    a = np.array([3.0, 4.0, 12.0, 84.0])
    np.testing.assert_array_equal(reference.rms_norm(a, eps=0.0), [float(Fraction(2 * int(x), 85)) for x in a])
    np.testing.assert_allclose(reference.rms_norm(a, k=2, eps=0.0), a * np.sqrt(2) / 5, rtol=3e-16)


@pytest.mark.parametrize("scale", [5e-324, 1e-310, 1e-200, 1.0, 1e160, 1.7e308])
@pytest.mark.parametrize("k", [6, 2])
def test_extreme_rows_against_arbitrary_precision(scale, k):
    """Forward, vjp and LayerNorm of a row at either end of float64, at eps = 0, against 60 decimal digits."""
    a = np.array([1.0, -0.5, 0.25, 0.75, -1.0, 0.125]) * scale
    if scale == 5e-324:
        a = np.array([5e-324, -1e-323, 0.0, 1.5e-323, 5e-324, -5e-324])
    g, u = RNG.standard_normal(6), RNG.standard_normal(6) * min(1.0, scale * 1e300)
    with mpmath.workdps(60):
        exact = [mpmath.mpf(x) for x in a]
        v = [mpmath.mpf(x) * mpmath.mpf(y) for x, y in zip(g, u, strict=True)]
        r = mpmath.sqrt(mpmath.fsum(x * x for x in exact[:k]) / k)
        y = [float(x / r * mpmath.mpf(w)) for x, w in zip(exact, g, strict=True)]
        dot = mpmath.fsum(x * w for x, w in zip(exact, v, strict=True))
        da = [float((v[i] - (exact[i] * dot / (k * r * r) if i < k else 0)) / r) for i in range(6)]
        mean = mpmath.fsum(exact) / 6
        sigma = mpmath.sqrt(mpmath.fsum((x - mean) ** 2 for x in exact) / 6)
        layer = [float((x - mean) / sigma) for x in exact]
    np.testing.assert_allclose(reference.rms_norm(a, g, k=k, eps=0.0), y, rtol=1e-15)
    np.testing.assert_allclose(reference.rms_norm_vjp(u, a, g, k=k, eps=0.0)[0], da, rtol=2e-14)
    np.testing.assert_allclose(reference.layer_norm(a, eps=0.0), layer, rtol=2e-15, atol=2e-16)


def test_a_large_eps_beside_a_tiny_row():
    a = np.array([[1e-300, -3e-300], [5e-324, 1e-323]])
    np.testing.assert_allclose(reference.rms_norm(a, eps=4.0), a / 2, rtol=1e-15)
    np.testing.assert_allclose(reference.layer_norm(a, eps=4.0)[0], [1e-300, -1e-300], rtol=1e-15)
    np.testing.assert_allclose(reference.rms_norm_vjp(np.ones((2, 2)), a, eps=4.0)[0], np.full((2, 2), 0.5), rtol=1e-15)


def test_what_is_not_finite_follows_ieee():
    inf, nan = np.inf, np.nan
    rows = np.array([[1.0, inf, -2.0], [1.0, nan, 2.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    expected = np.array([[0, nan, 0], [nan] * 3, [nan] * 3, [1, 1, 1]])
    np.testing.assert_array_equal(reference.rms_norm(rows, eps=0.0), expected)
    partial = np.array([[1.0, 1.0, nan], [1.0, 1.0, inf], [0.0, 0.0, -3.0], [2.0, -2.0, 1e308]])
    expected = np.array([[1, 1, nan], [1, 1, inf], [nan, nan, -inf], [1, -1, 5e307]])
    np.testing.assert_array_equal(reference.rms_norm(partial, k=2, eps=0.0), expected)


def test_dtype_policy():
    a, u, g, b = (x.astype(np.float32) for x in _draw(5))
    assert reference.rms_norm(a, g, b, eps=1e-6).dtype == np.float64
    assert all(d.dtype == np.float64 for d in reference.rms_norm_vjp(u, a, g, eps=1e-6))
    assert reference.layer_norm(a.astype(np.longdouble), g, eps=1e-6).dtype == np.longdouble


@pytest.mark.parametrize("k", [0, 6, -1])
def test_k_outside_the_row(k):
    with pytest.raises(ValueError, match=r"k must lie in 1\.\.n = 5"):
        reference.rms_norm(np.ones(5), k=k, eps=0.0)


def test_gain_of_another_length():
    with pytest.raises(ValueError, match=r"must have shape \(5,\).*has \(4,\)"):
        reference.rms_norm(np.ones(5), np.ones(4), eps=0.0)
