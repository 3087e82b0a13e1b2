"""rms_norm_quantized against the oracle: the scale, the codes, and what they stand for."""

import pytest
import torch

import composites
import quantized_cases
from quantized_cases import CASES, FP8
from rmsnorm.torch import rms_norm_quantized

BACKENDS = pytest.mark.parametrize(
    "function", [rms_norm_quantized, composites.rms_norm_quantized], ids=["kernels", "composite"]
)


@pytest.mark.every_level
@BACKENDS
@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(str(v).removeprefix("torch.") for v in c.values()))
def test_against_the_oracle(function, case):
    quantized_cases.conforms(function, case)


@pytest.mark.every_level
@BACKENDS
@pytest.mark.parametrize("code", [torch.int8, FP8], ids=str)
def test_every_code_and_every_tie(function, code):
    quantized_cases.every_code_and_every_tie(function, code)


@pytest.mark.every_level
@BACKENDS
@pytest.mark.parametrize("code", [torch.int8, FP8], ids=str)
def test_rows_without_a_scale(function, code):
    quantized_cases.rows_without_a_scale(function, code)


def test_subnormal_scales_do_not_leave_the_codes():
    quantized_cases.subnormal_scales_do_not_leave_the_codes()


def test_heads_and_several_dimensions():
    quantized_cases.heads_and_several_dimensions()


def test_the_scale_is_float32_whatever_the_default():
    x = torch.randn(3, 8)
    _, scale = rms_norm_quantized(x, (8,))
    torch.set_default_dtype(torch.float64)
    try:
        _, found = rms_norm_quantized(x, (8,))
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert torch.equal(found, scale)


def test_compiled():
    torch._dynamo.reset()
    x, weight = torch.randn(5, 64), torch.randn(64)
    q, scale = rms_norm_quantized(x, (64,), weight, 1e-5)
    found = torch.compile(rms_norm_quantized, fullgraph=True)(x, (64,), weight, 1e-5)
    assert (found[0].int() - q.int()).abs().max() <= 1
    torch.testing.assert_close(found[1], scale, rtol=2e-6, atol=0)


def test_meta():
    q, scale = rms_norm_quantized(torch.empty(3, 8, device="meta"), (8,))
    assert (q.dtype, q.shape, scale.shape) == (torch.int8, (3, 8), (3, 1))


def test_no_gradient_and_says_so():
    x, weight = torch.randn(3, 8), torch.randn(8, requires_grad=True)
    for given in ((x.clone().requires_grad_(), (8,)), (x, (8,), weight)):
        with pytest.raises(ValueError, match="rms_norm_quantized is not differentiable"):
            rms_norm_quantized(*given)
        with torch.no_grad():
            _, scale = rms_norm_quantized(*given)
        assert not scale.requires_grad


def test_wrong_arguments():
    x = torch.randn(3, 8)
    with pytest.raises(NotImplementedError, match=r"torch.int8 or torch.float8_e4m3fn, got torch.uint8"):
        rms_norm_quantized(x, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="p is the fraction"):
        rms_norm_quantized(x, 8, p=0)
    with pytest.raises(ValueError, match="weight must have the shape"):
        rms_norm_quantized(x, 8, torch.ones(7))
    with pytest.raises(TypeError, match=r"input must be a .*Tensor"):
        rms_norm_quantized([1.0], 1)
