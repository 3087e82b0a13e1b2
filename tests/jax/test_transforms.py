"""rmsnorm.jax under JAX's transformations: against the oracle's derivatives, finite differences, and loops."""

import math

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="JAX is not installed: pip install 'rmsnorm[jax]'")

import jax.numpy as jnp
from jax.test_util import check_grads

import rmsnorm.jax as rj
from rmsnorm import reference

RNG = np.random.default_rng(20191016)
EPS = 1e-5


def draw(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def close(found, expected, units=32):
    """Within this many u of what is largest: sums of some hundred terms around 1."""
    expected = np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    assert np.max(np.abs(found - expected), initial=0.0) <= units * 2**-24 * np.max(np.abs(expected), initial=1.0)


def primitives_of(function, *args):
    """The names of the primitives in a function's jaxpr, inner ones included."""
    found = set()

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            found.add(equation.primitive.name)
            for value in equation.params.values():
                if hasattr(value, "jaxpr"):
                    walk(getattr(value.jaxpr, "jaxpr", value.jaxpr))

    walk(jax.make_jaxpr(function)(*args).jaxpr)
    return found


def weighted(norm, dy):
    """A scalar function whose gradient at the norm's result is dy."""
    return lambda *args: jnp.sum(norm(*args) * dy)


def rms(x, *parameters, **options):
    return rj.rms_norm(x, *parameters, eps=EPS, **options)


@pytest.mark.parametrize("axis", [-1, 0, (0, 1), (0, 2), (-2, -1), (0, 1, 2)], ids=str)
def test_any_axis(axis):
    """Rows are what remains; the weight has the shape of the normalised axes, whose elements p counts in C order."""
    x, dy = draw(2, 5, 6, 7)
    axes = tuple(a % 3 for a in (axis if isinstance(axis, tuple) else (axis,)))
    shape, others = tuple(x.shape[a] for a in axes), [a for a in range(3) if a not in axes]
    n, g, b = math.prod(shape), draw(*shape), draw(*shape)

    def rows(array):
        return array.transpose(*others, *axes).reshape(-1, n)

    def back(array):
        return array.reshape(*(x.shape[a] for a in others), *shape).transpose(np.argsort([*others, *axes]))

    def norm(x, g, b):
        return rms(x, g, b, axis=axis, p=0.25)

    k = -(-n // 4)
    close(norm(x, g, b), back(reference.rms_norm(rows(x), g.ravel(), b.ravel(), k=k, eps=EPS)))
    found = jax.grad(weighted(norm, dy), (0, 1, 2))(x, g, b)
    expected = reference.rms_norm_vjp(rows(dy), rows(x), g.ravel(), k=k, eps=EPS)
    close(found[0], back(expected[0]))
    close(found[1], expected[1].reshape(shape))
    close(found[2], expected[2].reshape(shape))


def test_only_the_gradients_that_are_wanted():
    x, g, b, dy = draw(5, 33), draw(33), draw(33), draw(5, 33)
    expected = reference.rms_norm_vjp(dy, x, g, eps=EPS)
    for i in range(3):
        close(jax.grad(weighted(rms, dy), i)(x, g, b), expected[i])
    close(jax.grad(weighted(lambda b: rms(x, None, b), dy))(b), expected[2])
    norm_of_constants = jax.make_jaxpr(jax.grad(weighted(lambda b: rms(x, g, b), dy)))(b)
    assert "wants=('dbias',)" in str(norm_of_constants)


def test_a_sum_of_which_one_result_is_used():
    x, r, g, dy = draw(5, 33), draw(5, 33), draw(33), draw(5, 33)

    def each(i):
        return jax.grad(lambda x, r, g: jnp.sum(rj.add_rms_norm(x, r, g, eps=EPS)[i] * dy), (0, 1, 2))(x, r, g)

    expected = reference.rms_norm_vjp(dy, x + r, g, eps=EPS)
    for found, right in zip(each(0), (expected[0], expected[0], expected[1]), strict=True):
        close(found, right)
    for found, right in zip(each(1), (dy, dy, np.zeros(33)), strict=True):
        assert np.array_equal(found, right)
    assert "rmsnorm_backward" not in primitives_of(
        lambda x: jax.grad(lambda x: jnp.sum(rj.add_rms_norm(x, r)[1]))(x), x
    )


def test_both_passes_are_kernels():
    x, g = draw(5, 33), draw(33)
    assert "rmsnorm_norm" in primitives_of(rms, x, g)
    gradients = primitives_of(jax.grad(lambda x, g: jnp.sum(rms(x, g)), (0, 1)), x, g)
    assert {"rmsnorm_norm", "rmsnorm_backward"} <= gradients
    assert "rmsnorm_tangent" not in gradients


def test_forward_mode():
    x, g, b = draw(5, 33), draw(33), draw(33)
    dx, dg, db = draw(5, 33), draw(33), draw(33)
    found = jax.jvp(rms, (x, g, b), (dx, dg, db))[1]
    close(found, reference.rms_norm_jvp(dx, x, g, dg, db, eps=EPS))
    found = jax.jvp(lambda x, r: rj.add_rms_norm(x, r, g, eps=EPS), (x, dx), (dx, x))[1]
    close(found[0], reference.rms_norm_jvp(x + dx, x + dx, g, eps=EPS))
    assert np.array_equal(found[1], x + dx)
    found = jax.jvp(lambda x, g, b: rj.layer_norm(x, g, b, eps=EPS), (x, g, b), (dx, dg, db))[1]
    close(found, reference.layer_norm_jvp(dx, x, g, dg, db, eps=EPS))


@pytest.mark.parametrize(
    "norm",
    [
        lambda x, r, g, b: rj.rms_norm(x, g, b, p=0.5, zero_centered=True),
        lambda x, r, g, b: rj.layer_norm(x, g, b),
        lambda x, r, g, b: rj.add_rms_norm(x, r, g, b),
    ],
    ids=["rms", "layer", "add"],
)
def test_derivatives_of_derivatives(norm):
    """To the second order, against finite differences in float64."""
    with jax.enable_x64(True):
        args = [RNG.standard_normal(shape) for shape in ((3, 2, 5), (3, 2, 5), (2, 5), (2, 5))]
        check_grads(jax.jit(norm), args, order=2, modes=["rev"], atol=1e-6, rtol=1e-6, eps=1e-5)


def test_every_way_to_a_hessian():
    g = draw(7)

    def loss(x):
        return jnp.sum(rms(x, g) ** 3)

    def written_out(x):
        return jnp.sum((x * jax.lax.rsqrt(jnp.mean(x * x) + EPS) * g) ** 3)

    @jax.jit
    def hessians(x):
        modes = [(jax.jacfwd, jax.jacfwd), (jax.jacfwd, jax.jacrev), (jax.jacrev, jax.jacfwd), (jax.jacrev, jax.jacrev)]
        return jax.hessian(written_out)(x), [outer(inner(loss))(x) for outer, inner in modes]

    expected, found = hessians(draw(7))
    for hessian in found:
        close(hessian, expected, 128)


def test_vmap_over_rows_and_over_gains():
    x, g, b, dy = draw(3, 4, 33), draw(3, 33), draw(33), draw(3, 4, 33)
    calls = primitives_of(jax.vmap(rms, (0, 0, None)), x, g, b)
    assert "rmsnorm_norm" in calls
    assert not {"scan", "while"} & calls
    close(jax.vmap(rms, (0, None, None))(x, g[0], b), reference.rms_norm(x, g[0], b, eps=EPS))
    each = [reference.rms_norm(x[i], g[i], b, eps=EPS) for i in range(3)]
    close(jax.vmap(rms, (0, 0, None))(x, g, b), each)
    close(jax.vmap(rms, (1, 0, None), out_axes=1)(np.moveaxis(x, 0, 1), g, b), np.moveaxis(each, 0, 1))
    close(jax.vmap(rms, (None, 0))(x[0], g), [reference.rms_norm(x[0], g[i], eps=EPS) for i in range(3)])
    # the gain of each, and the gradient of a shared gain of each
    found = jax.vmap(jax.grad(lambda x, g, dy: jnp.sum(rms(x, g) * dy), (0, 1)))(x, g, dy)
    shared = jax.vmap(jax.grad(lambda x, g, dy: jnp.sum(rms(x, g) * dy), 1), (0, None, 0))(x, g[0], dy)
    for i in range(3):
        dx, dg, _ = reference.rms_norm_vjp(dy[i], x[i], g[i], eps=EPS)
        close(found[0][i], dx)
        close(found[1][i], dg)
        close(shared[i], reference.rms_norm_vjp(dy[i], x[i], g[0], eps=EPS)[1])
    # the gradient of a gain that all share
    dg = jax.grad(lambda g: jnp.sum(jax.vmap(rms, (0, None))(x, g) * dy))(g[0])
    close(dg, reference.rms_norm_vjp(dy, x, g[0], eps=EPS)[1])


def test_vmap_of_vmap_with_gains_of_heads():
    """Ensembles of models with a gain for each head: groups and heads in one call."""
    x, g, dy = draw(2, 3, 4, 5, 33), draw(2, 3, 5, 33), draw(2, 3, 4, 5, 33)

    def step(x, g, dy):
        y, pull = jax.vjp(rms, x, g)
        return y, *pull(dy)

    y, dx, dg = jax.vmap(jax.vmap(step))(x, g, dy)
    y2, _, dg2 = jax.vmap(jax.vmap(step, (0, None, 0)), (0, 0, 0))(x, g[:, 0], dy)
    for i in np.ndindex(2, 3):
        right = reference.rms_norm_vjp(dy[i], x[i], g[i], eps=EPS)
        close(y[i], reference.rms_norm(x[i], g[i], eps=EPS))
        close(dx[i], right[0])
        close(dg[i], right[1])
        close(y2[i], reference.rms_norm(x[i], g[i[0], 0], eps=EPS))
        close(dg2[i], reference.rms_norm_vjp(dy[i], x[i], g[i[0], 0], eps=EPS)[1])


def test_inside_of_scan_and_checkpoint():
    """A stack of layers whose gains are scanned over, as models are written."""
    x, gains, dy = draw(4, 33), draw(3, 33), draw(4, 33)

    def stack(x, gains):
        return jax.lax.scan(jax.checkpoint(lambda x, g: (rms(x, g), None)), x, gains)[0]

    found = jax.jit(jax.grad(weighted(stack, dy), (0, 1)))(x, gains)
    values = [x.astype(np.float64)]
    for g in gains:
        values.append(reference.rms_norm(values[-1], g, eps=EPS))
    d, dgains = dy, []
    for x, g in zip(values[-2::-1], gains[::-1], strict=True):
        d, dg, _ = reference.rms_norm_vjp(d, x, g, eps=EPS)
        dgains.append(dg)
    close(found[0], d, 128)
    close(found[1], dgains[::-1], 128)


def test_sizes_of_nothing():
    g = draw(5)
    assert rms(np.ones((0, 5), np.float32), g).shape == (0, 5)
    assert rms(np.ones((5, 0), np.float32)).shape == (5, 0)
    dg = jax.grad(lambda g: rms(np.ones((0, 5), np.float32), g).sum())(g)
    assert np.array_equal(dg, np.zeros(5))
    assert jax.vmap(rms)(np.ones((0, 3, 5), np.float32), np.ones((0, 5), np.float32)).shape == (0, 3, 5)


def test_without_jit():
    """``jax.disable_jit`` must not keep a primitive from being compiled: its evaluation would call itself."""
    x, g, dy = draw(4, 33), draw(33), draw(4, 33)
    with jax.disable_jit():
        y, pull = jax.vjp(rms, x, g)
        found = pull(jnp.asarray(dy))
        each = jax.vmap(rms, (0, None))(x, g)
    close(y, reference.rms_norm(x, g, eps=EPS))
    close(each, reference.rms_norm(x, g, eps=EPS))
    for a, b in zip(found, reference.rms_norm_vjp(dy, x, g, eps=EPS), strict=False):
        close(a, b)


@pytest.mark.parametrize("under", [lambda f: f, jax.jit, jax.vmap, lambda f: jax.grad(lambda x: f(x).sum())])
def test_a_search_for_nan_names_the_norm(under):
    """It runs a jitted function once more, operation by operation; a norm is one, and was run again and again."""
    jax.config.update("jax_debug_nans", True)
    try:
        with pytest.raises(FloatingPointError, match=r"invalid value \(nan\) encountered in rmsnorm_norm"):
            under(rj.rms_norm)(jnp.array([[jnp.inf, 1.0]]))
        assert np.isfinite(under(rj.rms_norm)(jnp.array([[3.0, 1.0]]))).all()
    finally:
        jax.config.update("jax_debug_nans", False)
