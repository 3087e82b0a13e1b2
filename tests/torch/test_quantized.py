"""rms_norm_quantized and add_rms_norm_quantized against the oracle: the scale, the codes, and the sum."""

import ml_dtypes
import numpy as np
import pytest
import torch

import composites
import quantized_cases
import rmsnorm.numpy
from conformance import from_numpy, to_numpy
from quantized_cases import CASES, FP8, SUM_CASES
from rmsnorm.torch import add_rms_norm_quantized, rms_norm_quantized


def through_numpy(x, shape, weight=None, eps=None, *, dtype, p=1.0, residual=None):
    w = None if weight is None else to_numpy(weight)
    code = np.int8 if dtype == torch.int8 else ml_dtypes.float8_e4m3fn
    options = {"eps": eps, "dtype": code, "p": p}
    if residual is None:
        q, scale = rmsnorm.numpy.rms_norm_quantized(to_numpy(x), w, **options)
        total = ()
    else:
        q, scale, s = rmsnorm.numpy.add_rms_norm_quantized(to_numpy(x), to_numpy(residual), w, **options)
        total = (from_numpy(s),)
    assert q.dtype == code
    return from_numpy(q.view(np.int8)).view(dtype), from_numpy(scale), *total


def sum_through_numpy(x, residual, *args, **options):
    return through_numpy(x, *args, **options, residual=residual)


BACKENDS = pytest.mark.parametrize(
    "function",
    [rms_norm_quantized, composites.rms_norm_quantized, through_numpy],
    ids=["kernels", "composite", "numpy"],
)


@pytest.mark.every_level
@BACKENDS
@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(str(v).removeprefix("torch.") for v in c.values()))
def test_against_the_oracle(function, case):
    quantized_cases.conforms(function, case)


@pytest.mark.every_level
@pytest.mark.parametrize(
    "function",
    [add_rms_norm_quantized, composites.add_rms_norm_quantized, sum_through_numpy],
    ids=["kernels", "composite", "numpy"],
)
@pytest.mark.parametrize("case", SUM_CASES, ids=lambda c: "-".join(str(v).removeprefix("torch.") for v in c.values()))
def test_of_a_sum_against_the_oracle(function, case):
    quantized_cases.sum_conforms(function, case)


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
    residual = torch.randn(5, 64)
    q, scale, total = add_rms_norm_quantized(x, residual, (64,), weight, 1e-5)
    found = torch.compile(add_rms_norm_quantized, fullgraph=True)(x, residual, (64,), weight, 1e-5)
    assert (found[0].int() - q.int()).abs().max() <= 1
    torch.testing.assert_close(found[1], scale, rtol=2e-6, atol=0)
    assert torch.equal(found[2], total)


def test_meta():
    q, scale = rms_norm_quantized(torch.empty(3, 8, device="meta"), (8,))
    assert (q.dtype, q.shape, scale.shape) == (torch.int8, (3, 8), (3, 1))
    x = torch.empty(3, 8, device="meta")
    q, scale, total = add_rms_norm_quantized(x, x.bfloat16(), (8,), dtype=FP8)
    assert (q.dtype, q.shape, scale.shape) == (FP8, (3, 8), (3, 1))
    assert (total.dtype, total.shape) == (torch.bfloat16, (3, 8))


def test_no_gradient_and_says_so():
    x, weight = torch.randn(3, 8), torch.randn(8, requires_grad=True)
    for given in ((x.clone().requires_grad_(), (8,)), (x, (8,), weight)):
        with pytest.raises(ValueError, match="rms_norm_quantized is not differentiable"):
            rms_norm_quantized(*given)
        with torch.no_grad():
            _, scale = rms_norm_quantized(*given)
        assert not scale.requires_grad
    for given in ((x, x.clone().requires_grad_(), (8,)), (x, x, (8,), weight)):
        with pytest.raises(ValueError, match=r"^add_rms_norm_quantized is not differentiable"):
            add_rms_norm_quantized(*given)
        with torch.no_grad():
            assert not any(t.requires_grad for t in add_rms_norm_quantized(*given))


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
    with pytest.raises(TypeError, match=r"residual must be a torch.Tensor, got NoneType; rms_norm_quantized needs"):
        add_rms_norm_quantized(x, None, 8)
    for residual, error in ((torch.ones(2, 8), ValueError), (torch.ones(3, 8).int(), TypeError), ([1.0], TypeError)):
        with pytest.raises(error, match="residual must "):
            add_rms_norm_quantized(x, residual, 8)
