"""Jagged nested tensors: a norm of one has the bits of the norm of its values, and what is refused is said."""

import re

import pytest
import torch

from rmsnorm.torch import (
    GRU,
    LayerNorm,
    RMSNorm,
    RMSNormGated,
    add_rms_norm,
    add_rms_norm_quantized,
    layer_norm,
    rms_norm,
    rms_norm_gated,
    rms_norm_quantized,
)

LENGTHS = 3, 1, 4, 0, 2
CALLS = {
    "rms_norm": lambda x, z, w: rms_norm(x, 8, w, 1e-5, bias=w.square(), p=0.3, zero_centered=True),
    "layer_norm": lambda x, z, w: layer_norm(x, 8, w, w.square()),
    "add_rms_norm": lambda x, z, w: add_rms_norm(x, z, (8,), w, casting="llama"),
    "rms_norm_gated": lambda x, z, w: rms_norm_gated(x, z, 8, w, groups=2),
}
SHAPES = {"3-d": (), "4-d": (5,), "5-d": (2, 3)}


def jagged(*between, lengths=LENGTHS, dtype=torch.float32):
    items = [torch.randn(n, *between, 8, dtype=dtype) for n in lengths]
    return torch.nested.nested_tensor(items, layout=torch.jagged)


def pair(*between, transposed=False, dtype=torch.float32):
    x = jagged(*between, dtype=dtype)
    z = torch.nested.nested_tensor_from_jagged(torch.randn_like(x.values()), x.offsets())
    return [(t.transpose(1, 2) if transposed else t).detach().requires_grad_() for t in (x, z)]


def results_and_gradients(call, x, z, w, join):
    results = call(x, z, w)
    results = results if isinstance(results, tuple) else (results,)
    loss = sum((join(t) * (join(t).detach() + 1)).sum() for t in results)
    return results, torch.autograd.grad(loss, [t for t in (x, z, w) if t.requires_grad], allow_unused=True)


def compare(call, x, z, w, rtol=0):
    """``call`` on nested tensors, against the same on their values."""
    found, of_found = results_and_gradients(call, x, z, w, lambda t: t.values())
    plain = [t.values().detach().requires_grad_(t.requires_grad) for t in (x, z)]
    expected, of_expected = results_and_gradients(call, *plain, w, lambda t: t)
    for y, same in zip(found, expected, strict=True):
        assert y.shape == x.shape
        assert y.offsets() is x.offsets()
        torch.testing.assert_close(y.values(), same, rtol=rtol, atol=rtol)
        y + x  # one ragged extent
    for g, same in zip(of_found, of_expected, strict=True):
        g = g.values() if g is not None and g.is_nested else g
        torch.testing.assert_close(g, same, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("between", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("transposed", [False, True], ids=["", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_norm_is_that_of_the_values(name, between, transposed, dtype):
    if transposed and not between:
        pytest.skip("the ragged dimension would be normalised")
    x, z = pair(*between, transposed=transposed, dtype=dtype)
    compare(CALLS[name], x, z, torch.randn(8, requires_grad=True))


@pytest.mark.parametrize("name", ["rms_norm", "layer_norm", "add_rms_norm"])
def test_one_gain_for_each_head(name):
    compare(CALLS[name], *pair(5), torch.randn(5, 8, requires_grad=True))
    with pytest.raises(ValueError, match="where the dimension before it is ragged"):
        CALLS[name](*pair(5, transposed=True), torch.randn(5, 8))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("frozen", ["input", "gain"])
def test_frozen_tensors(name, frozen):
    x, z = pair(5)
    if frozen == "input":
        x, z = x.detach(), z.detach()
    compare(CALLS[name], x, z, torch.randn(8, requires_grad=frozen != "gain"))


def test_modules_and_codes():
    x, z = pair(5)
    for module in (RMSNorm(8, p=0.5), LayerNorm(8)):
        assert torch.equal(module(x).values(), module(x.values()))
    assert torch.equal(RMSNormGated(8)(x, z).values(), RMSNormGated(8)(x.values(), z.values()))
    q, scale = rms_norm_quantized(x.detach(), 8)
    wanted, of_wanted = rms_norm_quantized(x.values().detach(), 8)
    assert torch.equal(q.values(), wanted)
    assert torch.equal(scale.values(), of_wanted)
    assert scale.shape == (*x.shape[:-1], 1)
    found = add_rms_norm_quantized(x.detach(), z.detach(), 8)
    for t, wanted in zip(found, add_rms_norm_quantized(x.values().detach(), z.values().detach(), 8), strict=True):
        assert torch.equal(t.values(), wanted)


def test_lengths_that_are_known_stay_known():
    x, _ = pair()
    x._get_max_seqlen()
    assert rms_norm(x, 8)._maybe_max_seqlen == max(LENGTHS)


@pytest.mark.parametrize("transposed", [False, True], ids=["", "transposed"])
def test_compiled(transposed):
    """One graph for all; the lengths vary."""

    def run(x, z, w):
        y, total = CALLS["add_rms_norm"](x, z, w)
        return CALLS["rms_norm_gated"](CALLS["layer_norm"](CALLS["rms_norm"](y, z, w), z, w), total, w)

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    w = torch.randn(8, requires_grad=True)
    for _ in range(2):
        x, z = pair(5, transposed=transposed)
        (found,), of_found = results_and_gradients(compiled, x, z, w, lambda t: t.values())
        (expected,), of_expected = results_and_gradients(run, x, z, w, lambda t: t.values())
        assert found.shape == x.shape
        torch.testing.assert_close(found.values(), expected.values(), rtol=1e-5, atol=1e-5)
        for g, same in zip(of_found, of_expected, strict=True):
            g, same = (t.values() if t.is_nested else t for t in (g, same))
            torch.testing.assert_close(g, same, rtol=1e-4, atol=1e-4)


def with_holes():
    start, length = torch.tensor([0, 1, 2]), torch.tensor([3, 2, 3])
    return torch.nested.narrow(torch.randn(3, 6, 8), 1, start, length, layout=torch.jagged)


def strided():
    return torch.nested.nested_tensor([torch.randn(2, 8), torch.randn(3, 8)])


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("made", "error", "says"),
    [
        (
            lambda: jagged().transpose(1, 2),
            NotImplementedError,
            "the ragged dimension of input must not be one of the 1",
        ),
        (with_holes, NotImplementedError, "input must be a nested tensor without holes"),
        (strided, TypeError, "input must be dense, got a nested tensor of layout torch.strided"),
        (lambda: torch.randn(3, 8).to_mkldnn(), TypeError, "input must be dense, got a tensor of layout torch._mkldnn"),
    ],
    ids=["ragged", "holes", "strided", "mkldnn"],
)
def test_what_is_refused_is_said(name, made, error, says):
    x = made()
    for call in (
        CALLS[name],
        *[torch.compile(CALLS[name], backend="eager")] * (name == "rms_norm" and "mkldnn" not in says),
    ):
        with pytest.raises(error, match=re.escape(says)):
            call(x, x, torch.randn(8))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CALLS)
def test_masked_tensors_are_refused(name):
    x = torch.randn(3, 8)
    with pytest.raises(TypeError, match="input must be dense, got a MaskedTensor"):
        CALLS[name](torch.masked.masked_tensor(x, x > 0), x, torch.randn(8))


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda x: rms_norm(x, x.shape[-2:]), NotImplementedError, "must not be one of the 2 normalised"),
        (lambda x: rms_norm(x, 9), ValueError, "normalized_shape = (9,)"),
        (lambda x: rms_norm(x, "8"), TypeError, "normalized_shape must be an int or a sequence of ints, got '8'"),
        (lambda x: rms_norm(x, 8, x), ValueError, "weight must be a dense tensor"),
        (lambda x: rms_norm(x, 8, 2.0), TypeError, "weight must be a torch.Tensor, got float"),
        (lambda x: add_rms_norm(x, x.values(), 8), TypeError, "residual must be a jagged nested tensor"),
        (lambda x: add_rms_norm(x.values(), x, 8), TypeError, "input must be a jagged nested tensor"),
        (lambda x: add_rms_norm(x, jagged(), 8), ValueError, "residual must have the shape of input"),
        (lambda x: rms_norm_gated(x, jagged(), 8), ValueError, "gate must have the shape of input"),
        (lambda x: add_rms_norm(x, x, 8, inplace=True), NotImplementedError, "inplace=True takes neither nested"),
        (lambda x: rms_norm(x, 8, out=x), NotImplementedError, "out= takes neither nested tensors"),
        (lambda x: GRU(8, 8)(x), TypeError, "input must be dense, got a nested tensor of layout torch.jagged"),
    ],
)
def test_odd_arguments(call, error, says):
    with pytest.raises(error, match=re.escape(says)):
        call(jagged())
