"""One backward pass as autograd calls it: gradients of any layout, frozen arguments, hooks, saved tensors."""

import itertools

import pytest
import torch

from plain_norm import N, arguments, draw, plain
from rmsnorm.torch import add_rms_norm, layer_norm, rms_norm


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


HUGE = {torch.float32: 1e30, torch.bfloat16: 1e30, torch.float64: 1e200}
"""Sums of squares leave the normal range. Those of float16 numbers cannot."""


@pytest.mark.parametrize(
    ("dtype", "huge"), [*((dtype, 1.0) for dtype in (*HUGE, torch.float16)), *HUGE.items()], ids=str
)
@pytest.mark.parametrize("n", [8, 12, 16, 24, 32, 48, 64, 96, 128])
def test_short_rows_of_a_group_are_as_if_alone(dtype, huge, n):
    """Rows of 4, 6 and 8 vectors, each at one of the kernels' levels, take unrolled loops in groups of 8 usual rows."""
    rows = 21
    weight, dy = (torch.rand(n) + 0.5).to(dtype).requires_grad_(), torch.randn(rows, n).to(dtype)
    x = torch.randn(rows, n, dtype=torch.float64)
    x[3] *= huge
    x = x.to(dtype).requires_grad_()
    y = rms_norm(x, (n,), weight, 1e-6)
    dx, dweight = torch.autograd.grad(y, (x, weight), dy)
    total = torch.zeros(n, dtype=torch.float64)
    for row in range(rows):
        own = x.detach()[row : row + 1].clone().requires_grad_()
        alone = rms_norm(own, (n,), weight, 1e-6)
        of_own, of_weight = torch.autograd.grad(alone, (own, weight), dy[row : row + 1])
        assert torch.equal(y[row], alone[0])
        assert torch.equal(dx[row], of_own[0])
        total += of_weight.double()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(dweight.double(), total, rtol=2 * eps, atol=8 * eps * rows**0.5)
    if dtype == torch.float64 and huge > 1:
        return  # the oracle's sum of squares overflows
    exact = [t.detach().double().requires_grad_() for t in (x, weight)]
    expected = torch.autograd.grad(plain(exact[0], (n,), exact[1], 1e-6), exact, dy.double())
    torch.testing.assert_close(dweight.double(), expected[1], rtol=2 * eps, atol=8 * eps * rows**0.5)
    scale = expected[0].abs().amax(-1, keepdim=True)
    torch.testing.assert_close(dx.double() / scale, expected[0] / scale, rtol=0, atol=8 * eps)
