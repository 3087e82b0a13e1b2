"""Derivatives of every order through the kernels: in float64 against differences, and against a plain expression."""

import itertools

import pytest
import torch
from torch.autograd import forward_ad
from torch.autograd.gradcheck import gradcheck, gradgradcheck

from plain_norm import N, arguments, draw, plain
from rmsnorm.torch import add_rms_norm, layer_norm, rms_norm, rms_norm_gated, rms_norm_rotary

THOROUGH = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
OPTIONS = [
    {"p": 1.0},
    {"p": 0.5},
    {"p": 0.5, "zero_centered": True},
    {"p": 1.0, "casting": "llama"},
]
RMS = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()))


def rms_with(options):
    return lambda x, weight, bias: rms_norm(x, (N,), weight, 1e-3, bias=bias, **options)


@RMS
def test_rms_norm_first_order(options):
    assert gradcheck(rms_with(options), arguments(), **THOROUGH)


@RMS
def test_rms_norm_second_order(options):
    assert gradgradcheck(rms_with(options), arguments(), check_fwd_over_rev=True, check_rev_over_rev=True)


@RMS
def test_rms_norm_third_order(options):
    """gradgradcheck of the first derivative: a statistic that is saved as a constant goes wrong here at the latest."""

    def first(x, weight, bias):
        y = rms_with(options)(x, weight, bias)
        return torch.autograd.grad(y.sin().sum(), (x, weight), create_graph=True)

    assert gradgradcheck(first, arguments())


@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_of_every_order(affine):
    def function(x, weight, bias):
        return layer_norm(x, (N,), *((weight, bias) if affine else ()), eps=1e-3)

    inputs = arguments()[: 3 if affine else 1]
    inputs = inputs if affine else (*inputs, None, None)
    assert gradcheck(function, inputs, **THOROUGH)
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True)

    def first(x, weight, bias):
        return torch.autograd.grad(function(x, weight, bias).sin().sum(), x, create_graph=True)

    assert gradgradcheck(first, inputs)


@RMS
def test_add_rms_norm_of_every_order(options):
    def function(x, residual, weight, bias):
        return add_rms_norm(x, residual, (N,), weight, 1e-3, bias=bias, **options)

    inputs = (draw(2, N), *(a[:2] if a.dim() == 2 else a for a in arguments()))
    inputs = tuple(a.detach().requires_grad_() for a in inputs)
    assert gradcheck(function, inputs, **THOROUGH)
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True)


@pytest.mark.parametrize("operation", [rms_norm, layer_norm])
def test_no_weight_no_bias(operation):
    assert gradcheck(lambda x: operation(x, (N,), eps=1e-3), (draw(3, N),), **THOROUGH)
    assert gradgradcheck(lambda x: operation(x, (N,), eps=1e-3), (draw(3, N),))


def test_only_a_bias():
    def function(x, bias):
        return rms_norm(x, (N,), None, 1e-3, bias=bias)

    assert gradcheck(function, (draw(3, N), draw(N)), **THOROUGH)
    assert gradgradcheck(function, (draw(3, N), draw(N)))


def test_several_normalised_dimensions():
    def function(x, weight):
        return rms_norm(x, (2, 3), weight, 1e-3, p=0.5)

    assert gradcheck(function, (draw(2, 2, 3), draw(2, 3)), **THOROUGH)
    assert gradgradcheck(function, (draw(2, 2, 3), draw(2, 3)))


def test_forward_mode_in_float32():
    x, weight, bias = (a.detach() for a in arguments(torch.float32))
    dx, dweight, dbias = torch.randn(4, N), torch.randn(N), torch.randn(N)

    def through(function, cast):
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(cast(a), cast(t)) for a, t in ((x, dx), (weight, dweight), (bias, dbias))]
            return forward_ad.unpack_dual(function(duals[0], (N,), duals[1], 1e-5, bias=duals[2], p=0.5)).tangent

    found, expected = through(rms_norm, torch.clone), through(plain, torch.Tensor.double)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_dense_jacobians():
    x, weight, _ = (a.detach() for a in arguments())
    expected = torch.func.jacrev(lambda x: plain(x, (N,), weight, 1e-3, p=0.5))(x)

    def function(x):
        return rms_norm(x, (N,), weight, 1e-3, p=0.5)

    jacobian = torch.autograd.functional.jacobian
    found = [torch.func.jacrev(function)(x), torch.func.jacfwd(function)(x)]
    for one in (*found, jacobian(function, x), jacobian(function, x, vectorize=True)):
        torch.testing.assert_close(one, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layout", ["transposed", "dense"])
@pytest.mark.parametrize("name", ["rms_norm", "layer_norm", "add_rms_norm", "rms_norm_gated", "rms_norm_rotary"])
def test_vectorised_jacobians(name, layout):
    """A vmap of the backward pass, of a graph that was recorded outside of it."""
    x, other = torch.randn(N, 3, dtype=torch.float64), torch.randn(3, N, dtype=torch.float64)
    weight, angles = torch.rand(N, dtype=torch.float64) + 0.5, torch.randn(3, 4, dtype=torch.float64)
    x = x.t() if layout == "transposed" else x.t().contiguous()
    function = {
        "rms_norm": lambda x: rms_norm(x, N, weight, p=0.5),
        "layer_norm": lambda x: layer_norm(x, N, weight),
        "add_rms_norm": lambda x: add_rms_norm(x, other, N, weight)[0],
        "rms_norm_gated": lambda x: rms_norm_gated(x, other, N, weight),
        "rms_norm_rotary": lambda x: rms_norm_rotary(x[None, None], other[None, None], angles, angles, weight)[0],
    }[name]
    one, vectorised = (torch.autograd.functional.jacobian(function, x, vectorize=v) for v in (False, True))
    torch.testing.assert_close(vectorised, one, rtol=1e-10, atol=1e-12)


def test_hessians_by_every_route():
    weight, target = torch.randn(N, dtype=torch.float64), torch.randn(4, N, dtype=torch.float64)
    x = torch.randn(4, N, dtype=torch.float64)

    def loss(function):
        return lambda x: ((function(x, (N,), weight, 1e-3, p=0.5) - target) ** 2).sum()

    expected = torch.func.hessian(loss(plain))(x)
    f = loss(rms_norm)
    for outer, inner in itertools.product((torch.func.jacrev, torch.func.jacfwd), repeat=2):
        torch.testing.assert_close(outer(inner(f))(x), expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(torch.autograd.functional.hessian(f, x), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0), (1, None), (-1, 1)])
def test_vmap(in_dims):
    batch = 3
    x = torch.randn(4, N)
    weight = torch.randn(N)
    batched = []
    for value, dim in ((x, in_dims[0]), (weight, in_dims[1])):
        many = torch.randn(batch, *value.shape)
        batched.append(value if dim is None else many.movedim(0, dim))

    def function(x, weight):
        return rms_norm(x, (N,), weight, 1e-5, p=0.5)

    found = torch.vmap(function, in_dims=in_dims)(*batched)
    slices = [[b if d is None else b.select(d, i) for b, d in zip(batched, in_dims, strict=True)] for i in range(batch)]
    expected = torch.stack([function(*s) for s in slices])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_vmap_of_the_others():
    x, residual, weight, bias = torch.randn(3, 4, N), torch.randn(3, 4, N), torch.randn(N), torch.randn(N)
    found = torch.vmap(lambda x: layer_norm(x, (N,), weight, bias))(x)
    torch.testing.assert_close(found, layer_norm(x, (N,), weight, bias), rtol=1e-6, atol=1e-6)
    found = torch.vmap(lambda x, r: add_rms_norm(x, r, (N,), weight))(x, residual)
    for one, other in zip(found, add_rms_norm(x, residual, (N,), weight), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_each_sample(dtype):
    x, weight, bias = torch.randn(6, 4, N, dtype=dtype), torch.randn(N, dtype=dtype), torch.randn(N, dtype=dtype)

    def loss(weight, bias, x):
        return rms_norm(x, (N,), weight, 1e-5, bias=bias).tanh().sum()

    found = torch.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=(None, None, 0))(weight, bias, x)
    each = [torch.func.grad(loss, argnums=(0, 1))(weight, bias, one) for one in x]
    for got, expected in zip(found, zip(*each, strict=True), strict=True):
        torch.testing.assert_close(got, torch.stack(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_penalty_contributes(dtype):
    """The penalty's own gradient is there and right: a kernel whose backward has no graph would give nothing."""
    x, weight, bias = arguments(dtype)

    def penalty_gradients(function, *inputs):
        inputs = [a.detach().requires_grad_() for a in inputs]
        y = function(inputs[0], (N,), inputs[1], 1e-3, bias=inputs[2])
        (gradient,) = torch.autograd.grad(y.sin().sum(), inputs[0], create_graph=True)
        assert gradient.requires_grad
        return torch.autograd.grad((gradient.norm(dim=-1) - 1).pow(2).sum(), inputs)

    found = penalty_gradients(rms_norm, x, weight, bias)
    expected = penalty_gradients(plain, x.double(), weight.double(), bias.double())
    for one, other in zip(found, expected, strict=True):
        assert other.abs().max() > 1e-2
        torch.testing.assert_close(one.double(), other, rtol=1e-4 if dtype == torch.float32 else 1e-10, atol=1e-5)


def test_batched_gradients():
    x, weight, bias = arguments(torch.float32)
    y = rms_norm(x, (N,), weight, 1e-5, bias=bias)
    many = torch.randn(3, *y.shape)
    found = torch.autograd.grad(y, (x, weight, bias), many, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(y, (x, weight, bias), one, retain_graph=True) for one in many]
    for got, expected in zip(found, zip(*each, strict=True), strict=True):
        torch.testing.assert_close(got, torch.stack(expected), rtol=1e-5, atol=1e-6)
