"""A gain for each head, (heads, head_dim) over (…, heads, head_dim): what the conformance cases do not show."""

import re

import pytest
import torch
from torch.autograd.gradcheck import gradcheck, gradgradcheck

from rmsnorm.torch import LayerNorm, RMSNorm, add_rms_norm, layer_norm, rms_norm

HEADS, N = 3, 40


def test_each_head_is_as_if_alone():
    x = torch.randn(5, 7, HEADS, N, requires_grad=True)
    weight, bias = (torch.randn(HEADS, N, requires_grad=True) for _ in range(2))
    y = rms_norm(x, (N,), weight, 1e-5, bias=bias, p=0.5)
    dy = torch.randn_like(y)
    found = (y, *torch.autograd.grad(y, (x, weight, bias), dy))
    for h in range(HEADS):
        own = [x[:, :, h].detach().requires_grad_(), *(t[h].detach().requires_grad_() for t in (weight, bias))]
        alone = rms_norm(own[0], (N,), own[1], 1e-5, bias=own[2], p=0.5)
        alone = (alone, *torch.autograd.grad(alone, own, dy[:, :, h]))
        for whole, part, pick in zip(found, alone, ((..., h, slice(None)),) * 2 + ((h,),) * 2, strict=True):
            assert torch.equal(whole[pick], part)


def test_only_a_bias():
    x, bias = torch.randn(4, HEADS, N, requires_grad=True), torch.randn(HEADS, N, requires_grad=True)
    y = rms_norm(x, (N,), None, 1e-5, bias=bias)
    torch.testing.assert_close(y, rms_norm(x, (N,), None, 1e-5) + bias)
    dy = torch.randn_like(y)
    torch.testing.assert_close(torch.autograd.grad(y, bias, dy)[0], dy.sum(0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(HEADS, 5), (4, HEADS, 5), (2, 1, HEADS, 5)], ids=str)
def test_derivatives_of_every_order(shape):
    def function(x, weight, bias):
        return rms_norm(x, (5,), weight, 1e-3, bias=bias, p=0.5)

    given = [torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in (shape, (HEADS, 5), (HEADS, 5))]
    assert gradcheck(function, given, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, given)


def test_queries_of_a_packed_projection():
    """As attention has them: no copy of q and k, which are views of (tokens, 3, heads, head_dim)."""
    qkv = torch.randn(2, 9, 3, HEADS, N)
    weight = torch.randn(HEADS, N)
    for part in (qkv[:, :, 0], qkv[:, :, 1].transpose(0, 1)):
        assert torch.equal(rms_norm(part, (N,), weight), rms_norm(part.contiguous(), (N,), weight))
    assert torch.equal(rms_norm(qkv, (N,), weight)[:, :, 1], rms_norm(qkv[:, :, 1], (N,), weight))


def test_threads_change_no_bit(set_threads):
    x, weight = torch.randn(700, HEADS, N, requires_grad=True), torch.randn(HEADS, N, requires_grad=True)

    def work():
        y = rms_norm(x, (N,), weight)
        return (y.detach(), *torch.autograd.grad(y, (x, weight), torch.cos(x.detach())))

    set_threads(1)
    alone = work()
    set_threads(2)
    for one, other in zip(alone, work(), strict=True):
        assert torch.equal(one, other)


def test_the_other_functions_take_heads_too():
    x, residual, weight = torch.randn(4, HEADS, N), torch.randn(4, HEADS, N), torch.randn(HEADS, N)
    for h in range(HEADS):
        assert torch.equal(layer_norm(x, (N,), weight)[:, h], layer_norm(x[:, h], (N,), weight[h]))
        alone = add_rms_norm(x[:, h], residual[:, h], (N,), weight[h])
        for found, one in zip(add_rms_norm(x, residual, (N,), weight), alone, strict=True):
            assert torch.equal(found[:, h], one)


def test_module():
    norm = RMSNorm(N, heads=HEADS, bias=True, zero_centered=True)
    assert norm.weight.shape == norm.bias.shape == (HEADS, N)
    assert "heads=3" in repr(norm)
    x = torch.randn(2, HEADS, N)
    assert torch.equal(norm(x), rms_norm(x, (N,)))
    assert RMSNorm((4, 5), heads=2).weight.shape == (2, 4, 5)
    assert RMSNorm(N, heads=HEADS, elementwise_affine=False).weight is None


def test_layer_norm_module():
    norm = LayerNorm(N, heads=HEADS)
    assert norm.weight.shape == norm.bias.shape == (HEADS, N)
    assert "heads=3" in repr(norm)
    x = torch.randn(2, HEADS, N)
    torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    expected = layer_norm(x, (N,)) * norm.weight + norm.bias
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize(
    ("heads", "error", "message"),
    [
        (0, ValueError, "heads must be at least 1, or None for one gain for all, got 0"),
        (2.0, TypeError, "heads must be an int or None (one gain for all), got 2.0"),
        (True, TypeError, "heads must be an int or None (one gain for all), got True"),
    ],
)
def test_wrong_heads(heads, error, message):
    for module in (RMSNorm, LayerNorm):
        with pytest.raises(error, match=re.escape(message)):
            module(8, heads=heads)


@pytest.mark.parametrize("shape", [(2, N), (HEADS, 1), (1, HEADS, N), (4, HEADS, N), (HEADS, N, 1)], ids=str)
def test_wrong_shapes(shape):
    x, weight = torch.randn(4, HEADS, N), torch.randn(shape)
    for trained in (False, True):
        with pytest.raises(ValueError, match=r"weight must have the shape .*, or \(3, 40\) with one for each head"):
            rms_norm(x, (N,), weight.requires_grad_(trained))
    with pytest.raises(ValueError, match=r"weight must have the shape normalized_shape = \(40,\), got \(1, 40\)"):
        rms_norm(torch.randn(N), (N,), torch.randn(1, N))
