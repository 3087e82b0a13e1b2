"""add_rms_norm(inplace=True): the bits of the ordinary call, in the caller's own memory."""

import re

import pytest
import torch

from rmsnorm.torch import add_rms_norm

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stream", [None, torch.float32], ids=["same dtype", "float32 stream"])
@pytest.mark.parametrize(("rows", "n"), [(0, 8), (1, 1), (7, 129), (70, 64), (1100, 1024)])
def test_the_same_bits(dtype, stream, rows, n):
    x, residual = torch.randn(rows, n).to(dtype), torch.randn(rows, n).to(stream or dtype)
    weight, bias = torch.randn(n), torch.randn(n).to(dtype)
    options = {"bias": bias, "p": 0.5, "zero_centered": True}
    expected = add_rms_norm(x, residual, (n,), weight, 1e-5, **options)
    found = add_rms_norm(x, residual, (n,), weight, 1e-5, **options, inplace=True)
    assert found[0] is x
    assert found[1] is residual
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "view", [lambda t: t.t(), lambda t: t[:, 1::2], lambda t: t[1:, 8:16]], ids=["transposed", "every second", "slice"]
)
def test_views_and_what_lies_beside_them(view):
    whole = [torch.randn(24, 24) for _ in range(2)]
    kept = [t.clone() for t in whole]
    x, residual = map(view, whole)
    n = x.shape[-1]
    expected = add_rms_norm(x, residual, (n,), None, 1e-5)
    add_rms_norm(x, residual, (n,), None, 1e-5, inplace=True)
    for t, old, new in zip(whole, kept, expected, strict=True):
        view(old).copy_(new)
        assert torch.equal(t, old)


def test_heads_and_llamas_casting():
    x, residual, weight = torch.randn(5, 3, 8).bfloat16(), torch.randn(5, 3, 8).bfloat16(), torch.randn(3, 8).bfloat16()
    expected = add_rms_norm(x, residual, (8,), weight, 1e-5, casting="llama")
    add_rms_norm(x, residual, (8,), weight, 1e-5, casting="llama", inplace=True)
    assert torch.equal(x, expected[0])
    assert torch.equal(residual, expected[1])


@pytest.mark.parametrize("which", ["input", "residual"])
def test_zeros_that_are_nowhere_are_refused_before_anything_is_written(which):
    """They come as gradients from autograd, and cannot be written to."""
    other, zeros = torch.randn(2, 8), torch._efficientzerotensor((2, 8))
    kept = other.clone()
    with pytest.raises(ValueError, match=f"{which} must have memory"):
        add_rms_norm(*((zeros, other) if which == "input" else (other, zeros)), (8,), inplace=True)
    assert torch.equal(other, kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["the kernels", "torch's operations"])
@pytest.mark.parametrize("which", ["input", "residual"])
def test_an_inference_tensor_outside_of_its_mode_is_refused_before_anything_is_written(which, dtype):
    with torch.inference_mode():
        given = {"input": torch.randn(2, 8), "residual": torch.randn(2, 8, dtype=dtype)}
    given = {name: t if name == which else t.clone() for name, t in given.items()}
    kept = {name: t.clone() for name, t in given.items()}
    with pytest.raises(ValueError, match=f"{which} must not have been made in inference mode"):
        add_rms_norm(**given, normalized_shape=(8,), inplace=True)
    assert all(torch.equal(t, kept[name]) for name, t in given.items())
    with torch.inference_mode():
        add_rms_norm(**given, normalized_shape=(8,), inplace=True)
    assert not torch.equal(given["input"], kept["input"])


@pytest.mark.parametrize("stream", [torch.float32, torch.float64], ids=str)
def test_autograd_notices(stream):
    x, residual = torch.randn(4, 8), torch.randn(4, 8, dtype=stream)
    factor = torch.randn(4, 8, requires_grad=True)
    products = (factor * x).sum() + (factor * residual).sum()
    versions = x._version, residual._version
    add_rms_norm(x, residual, (8,), inplace=True)
    assert x._version > versions[0]
    assert residual._version > versions[1]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        products.backward()


def test_no_grad_and_inference_mode():
    x, residual, weight = torch.randn(3, 4, 8).requires_grad_()
    weight = weight[0].detach().requires_grad_()
    with torch.no_grad():
        x, residual = x.detach().requires_grad_(), residual.detach().clone()
        expected = add_rms_norm(x, residual, (8,), weight)[0]
        assert torch.equal(add_rms_norm(x, residual, (8,), weight, inplace=True)[0], expected)
    with torch.inference_mode():
        x, residual = torch.randn(4, 8), torch.randn(4, 8)
        expected = add_rms_norm(x, residual, (8,), weight)[0]
        assert torch.equal(add_rms_norm(x, residual, (8,), weight, inplace=True)[0], expected)


def test_compiled():
    torch._dynamo.reset()
    x, residual, weight = torch.randn(4, 8), torch.randn(4, 8), torch.randn(8)
    expected = add_rms_norm(x, residual, (8,), weight)

    @torch.compile(fullgraph=True)
    def step(x, residual):
        add_rms_norm(x, residual, (8,), weight, inplace=True)

    step(x, residual)
    assert torch.equal(x, expected[0])  # an operator, although the call is small
    assert torch.equal(residual, expected[1])


MEMORY = torch.ones(200)
X, MINE = torch.ones(3, 8), MEMORY[:24].view(3, 8)
WRONG = {
    "gradient": (torch.ones(3, 8, requires_grad=True), X, {}, "inplace=True is not differentiable"),
    "gradient of the gain": (X, X.clone(), {"weight": torch.ones(8, requires_grad=True)}, "is not differentiable"),
    "one tensor": (X, X, {}, "input and residual must not share memory"),
    "partly": (MINE, MEMORY[8:32].view(3, 8), {}, "input and residual must not share memory"),
    "input is the gain": (MINE, X.clone(), {"weight": MEMORY[:8]}, "input and weight must not share memory"),
    "residual is the bias": (X, MINE, {"bias": MEMORY[16:24]}, "residual and bias must not share memory"),
    "expanded": (torch.ones(8).expand(3, 8), X.clone(), {}, "input must not be an expanded or overlapping array"),
    "expanded residual": (X, torch.ones(8).expand(3, 8), {}, "residual must not be an expanded or overlapping array"),
    "dtype": (
        X.bfloat16(),
        X.bfloat16(),
        {"weight": torch.ones(8), "casting": "llama"},
        "input, which must have its dtype, torch.float32, got torch.bfloat16",
    ),
    "shape": (X, torch.ones(8), {}, "residual must have the shape of input"),
    "p": (X, X.clone(), {"p": 2}, "p is the fraction"),
}


@pytest.mark.parametrize(("x", "residual", "options", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_written_to(x, residual, options, message):
    kept = x.clone(), residual.clone()
    with pytest.raises(ValueError, match=re.escape(message)):
        add_rms_norm(x, residual, (8,), **options, inplace=True)
    assert torch.equal(x, kept[0])
    assert torch.equal(residual, kept[1])
