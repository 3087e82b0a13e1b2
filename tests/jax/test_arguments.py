"""Wrong arguments of rmsnorm.jax: what must hold, and what was received."""

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="JAX is not installed: pip install 'rmsnorm[jax]'")

import jax.numpy as jnp

import rmsnorm.jax as rj

X = np.ones((8, 33), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: rj.rms_norm(np.ones((3, 4), int)), TypeError, "x must be of a floating dtype .* got int32"),
        (lambda: rj.rms_norm(jnp.ones((3, 4), jnp.float8_e4m3fn)), TypeError, "got float8_e4m3fn"),
        (lambda: rj.rms_norm(X.astype(complex)), TypeError, "got complex64"),
        (lambda: rj.rms_norm(X.astype(object)), TypeError, r"x must be of a floating dtype .* got \|O"),
        (lambda: rj.rms_norm(X, X[0].astype(">f4")), TypeError, "weight must be of a floating dtype .* got >f4"),
        (lambda: rj.rms_norm(None), TypeError, "x must be an array, got NoneType"),
        (lambda: rj.rms_norm("text"), TypeError, "x must be an array, got str"),
        (lambda: rj.rms_norm(np.ma.masked_array(X)), TypeError, "x must be an array, got MaskedArray"),
        (lambda: rj.rms_norm(3.0), ValueError, "axes of an array of 0 dimensions"),
        (lambda: rj.rms_norm(X, np.ones(3)), ValueError, r"weight must have the shape .* got \(3,\)"),
        (lambda: rj.rms_norm(X, np.ones(33, int)), TypeError, "weight must be of a floating dtype"),
        (lambda: rj.rms_norm(X, X[0], X), ValueError, "bias must have the shape of weight"),
        (lambda: rj.rms_norm(X, axis=2), ValueError, "axis must name distinct axes"),
        (lambda: rj.rms_norm(X, axis=0.0), TypeError, "axis must be an int or a sequence of ints"),
        (lambda: rj.rms_norm(X, eps=-1.0), ValueError, "eps .* not negative, got -1"),
        (lambda: jax.jit(lambda eps: rj.rms_norm(X, eps=eps))(1e-5), TypeError, "eps must be a number or None"),
        (lambda: rj.rms_norm(X, p=0.0), ValueError, "0 < p <= 1"),
        (lambda: rj.rms_norm(X, zero_centered=3), TypeError, "zero_centered must be True"),
        (lambda: rj.add_rms_norm(X, X[:2]), ValueError, r"residual must have the shape of x, \(8, 33\), got \(2, 33\)"),
        (lambda: rj.add_rms_norm(X, X.astype(int)), TypeError, "residual must be of a floating dtype"),
        (lambda: rj.layer_norm(X, eps="1"), TypeError, "eps must be a number"),
    ],
)
def test_wrong_arguments(call, error, says):
    with pytest.raises(error, match=says):
        call()


def test_equal_calls_are_compiled_once():
    """A number of another type is the same norm."""
    rj.rms_norm(X, eps=0.5)
    before = rj._normed._cache_size()
    for eps in (0.5, np.float32(0.5), np.float64(0.5)):
        rj.rms_norm(X, eps=eps)
    assert rj._normed._cache_size() == before


def test_without_jax_there_is_one_clear_line(run_python):
    source = "import sys; sys.modules['jax'] = None; import rmsnorm.jax"
    assert "ImportError: rmsnorm.jax needs JAX: pip install 'rmsnorm[jax]'" in run_python(source, status=1)
