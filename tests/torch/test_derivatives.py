"""Derivatives of every order and kind through the kernels: in float64 against differences, and in float32 against a
plain expression that autograd differentiates by itself.
"""

import itertools

import pytest
import torch
from torch.autograd import forward_ad
from torch.autograd.gradcheck import gradcheck, gradgradcheck

from rmsnorm.torch import add_rms_norm, layer_norm, rms_norm

N, K = 5, 3
THOROUGH = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
OPTIONS = [
    {"p": 1.0},
    {"p": 0.5},
    {"p": 0.5, "zero_centered": True},
    {"p": 1.0, "casting": "llama"},
]
RMS = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()))


def plain(x, shape, weight=None, eps=0.0, *, bias=None, p=1.0, zero_centered=False, casting="once"):
    """The definition, written so that autograd has nothing to go wrong with."""
    k = {1.0: x.shape[-1], 0.5: -(-x.shape[-1] // 2)}[p]
    y = x / torch.sqrt(x[..., :k].pow(2).mean(-1, keepdim=True) + eps)
    if weight is not None:
        y = y * ((1 + weight) if zero_centered else weight)
    return y if bias is None else y + bias


def draw(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64).to(dtype).requires_grad_()


def arguments(dtype=torch.float64):
    return draw(4, N, dtype=dtype), draw(N, dtype=dtype), draw(N, dtype=dtype)


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


@pytest.mark.parametrize("trainable", [t for t in itertools.product((0, 1), repeat=3) if any(t)], ids=str)
@pytest.mark.parametrize("create_graph", [False, True])
def test_every_combination_of_frozen_arguments(trainable, create_graph):
    inputs = arguments(torch.float32)
    full = torch.autograd.grad(rms_norm(inputs[0], (N,), inputs[1], 1e-5, bias=inputs[2]).pow(3).sum(), inputs)
    some = [a.detach().requires_grad_(bool(t)) for a, t in zip(inputs, trainable, strict=True)]
    y = rms_norm(some[0], (N,), some[1], 1e-5, bias=some[2])
    y.pow(3).sum().backward(create_graph=create_graph)
    for argument, gradient, wanted in zip(some, full, trainable, strict=True):
        assert (argument.grad is not None) == bool(wanted)
        if wanted:
            torch.testing.assert_close(argument.grad.detach(), gradient, rtol=2e-6, atol=1e-6)


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


@pytest.mark.parametrize(
    "make",
    [
        lambda s: torch.randn(*s[::-1]).t(),
        lambda s: torch.randn(s[0], 2 * s[1])[:, ::2],
        lambda s: torch.randn(1, s[1]).expand(s),
        lambda s: torch.randn(s[0], 1).expand(s),
        lambda s: torch.tensor(1.5).expand(s),
        lambda s: torch.randn(s[0] * s[1] + 1)[1:].view(s),
    ],
    ids=["transposed", "every second", "one row", "one column", "one number", "misaligned"],
)
def test_gradients_of_any_layout(make):
    x, weight, bias = arguments(torch.float32)
    dy = make((4, N))
    y = rms_norm(x, (N,), weight, 1e-5, bias=bias)
    kept = dy.clone()
    found = torch.autograd.grad(y, (x, weight, bias), dy, retain_graph=True)
    expected = torch.autograd.grad(y, (x, weight, bias), dy.contiguous().clone())
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(dy, kept)


def test_backward_of_a_sum_and_of_two_uses():
    """`.sum().backward()` sends an expanded gradient; a tensor used twice, one gradient buffer to two consumers."""
    x, weight, bias = arguments(torch.float32)
    y = rms_norm(x, (N,), weight, 1e-5, bias=bias)
    (y.sum() + rms_norm(x, (N,), weight, 1e-5).sum() + x.sum()).backward()
    exact = [a.detach().double().requires_grad_() for a in (x, weight, bias)]
    total = plain(exact[0], (N,), exact[1], 1e-5, bias=exact[2]).sum() + plain(exact[0], (N,), exact[1], 1e-5).sum()
    (total + exact[0].sum()).backward()
    for one, other in zip((x, weight, bias), exact, strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-5, atol=1e-5)


def test_the_incoming_gradient_is_left_alone():
    seen = []
    x, weight, _ = arguments(torch.float32)
    y = rms_norm(x * 1.0, (N,), weight, 1e-5)
    y.register_hook(lambda g: seen.append((g, g.clone())))
    y.pow(2).sum().backward()
    gradient, copy = seen[0]
    assert torch.equal(gradient, copy)


def test_hooks_and_retained_gradients():
    x, weight, bias = arguments(torch.float32)
    hidden = x * 2
    hidden.retain_grad()
    y = rms_norm(hidden, (N,), weight, 1e-5, bias=bias)
    y.register_hook(lambda g: 3 * g)
    dy = torch.randn_like(y)
    y.backward(dy)
    fresh = [a.detach().requires_grad_() for a in (hidden, weight, bias)]
    expected = torch.autograd.grad(rms_norm(fresh[0], (N,), fresh[1], 1e-5, bias=fresh[2]), fresh, 3 * dy)
    for found, other in zip((hidden.grad, weight.grad, bias.grad), expected, strict=True):
        torch.testing.assert_close(found, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("operation", [rms_norm, layer_norm])
@pytest.mark.parametrize("which", ["input", "weight"])
def test_a_saved_tensor_that_was_changed_is_noticed(operation, which):
    x, weight, _ = arguments(torch.float32)
    hidden, gain = x * 2, weight * 2
    y = operation(hidden, (N,), gain)
    (hidden if which == "input" else gain).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_the_new_residual_is_saved_too():
    x, residual, weight = draw(4, N), draw(4, N), draw(N)
    normed, stream = add_rms_norm(x * 1, residual * 1, (N,), weight)
    stream.detach().mul_(2)  # shares memory and version counter
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        normed.sum().backward()


def test_the_output_may_be_changed_in_place():
    """Nothing that backward needs is the output itself."""
    x, weight, bias = arguments(torch.float32)
    y = rms_norm(x, (N,), weight, 1e-5, bias=bias)
    dy = torch.randn_like(y)
    expected = torch.autograd.grad(y, (x, weight, bias), 2 * dy, retain_graph=True)
    for one, other in zip(torch.autograd.grad(y.mul_(2), (x, weight, bias), dy), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_one_of_two_outputs_alone():
    """Gradients that are not there count as zeros, for either output of add_rms_norm."""
    x, residual, weight = draw(4, N), draw(4, N), draw(N)
    normed, stream = add_rms_norm(x, residual, (N,), weight, 1e-5)
    dy = torch.randn_like(normed)
    alone = torch.autograd.grad(normed, (x, residual, weight), dy, retain_graph=True)
    expected = torch.autograd.grad(plain(x + residual, (N,), weight, 1e-5), (x, residual, weight), dy)
    for one, other in zip(alone, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    dx, dresidual, dweight = torch.autograd.grad(stream, (x, residual, weight), dy, materialize_grads=True)
    assert torch.equal(dx, dy)
    assert torch.equal(dresidual, dy)
    assert not dweight.any()


def test_no_graph_where_none_is_asked_for():
    x, weight, bias = arguments(torch.float32)
    with torch.no_grad():
        assert not rms_norm(x, (N,), weight, bias=bias).requires_grad
    with torch.inference_mode():
        assert rms_norm(x, (N,), weight, bias=bias).is_inference()
    assert not rms_norm(x.detach(), (N,), weight.detach()).requires_grad
    assert rms_norm(x.detach(), (N,), weight).requires_grad


def test_a_second_backward_needs_the_graph_kept():
    x, weight, _ = arguments(torch.float32)
    y = rms_norm(x, (N,), weight).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_checkpoint_and_saved_tensor_hooks():
    """Recomputed and offloaded activations give the gradients of kept ones, bit for bit."""
    x, weight, bias = arguments(torch.float32)

    def block(x):
        return rms_norm(x, (N,), weight, 1e-5, bias=bias).tanh()

    kept = torch.autograd.grad(block(x).sum(), (x, weight, bias))
    checkpointed = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t.clone(), lambda t: t):
        offloaded = block(x)
    assert packed
    for y in (checkpointed, offloaded):
        for one, other in zip(torch.autograd.grad(y.sum(), (x, weight, bias)), kept, strict=True):
            assert torch.equal(one, other)
