"""The torch expressions with the public functions' arguments, so that what tests one tests the other."""

import torch

from rmsnorm.spec import check_spec
from rmsnorm.torch.gated.eager import GATED
from rmsnorm.torch.gated.spec import check_gated_spec
from rmsnorm.torch.norm.eager import NORM
from rmsnorm.torch.quantized.eager import QUANTIZED
from rmsnorm.torch.quantized.spec import QuantizedSpec
from rmsnorm.torch.rotary.eager import ROTARY


def _checked(operation, spec, *tensors):
    operation.check(spec, *tensors)
    return operation.composite(spec, *tensors)


def rms_norm(input, normalized_shape, weight=None, eps=None, *, bias=None, **how):
    return _checked(NORM, check_spec("rms", normalized_shape, eps, **how), input, None, weight, bias)[0]


def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    return _checked(NORM, check_spec("layer", normalized_shape, eps), input, None, weight, bias)[0]


def add_rms_norm(input, residual, normalized_shape, weight=None, eps=None, *, bias=None, **how):
    return _checked(NORM, check_spec("rms", normalized_shape, eps, **how), input, residual, weight, bias)


def rms_norm_gated(input, gate, normalized_shape, weight=None, eps=None, *, norm_before_gate=False, groups=1, p=1.0):
    spec = check_gated_spec(normalized_shape, eps, norm_before_gate, groups, p)
    return _checked(GATED, spec, input, gate, weight)[0]


def rms_norm_quantized(input, normalized_shape, weight=None, eps=None, *, dtype=torch.int8, p=1.0):
    spec = QuantizedSpec(check_spec("rms", normalized_shape, eps, p), dtype)
    return _checked(QUANTIZED, spec, input, None, weight)[:2]


def add_rms_norm_quantized(input, residual, normalized_shape, weight=None, eps=None, *, dtype=torch.int8, p=1.0):
    spec = QuantizedSpec(check_spec("rms", normalized_shape, eps, p), dtype)
    return _checked(QUANTIZED, spec, input, residual, weight)


def rms_norm_rotary(q, k, cos, sin, q_weight=None, k_weight=None, eps=None, *, zero_centered=False, casting="once"):
    spec = check_spec("rms", q.shape[-1], eps, 1.0, zero_centered, casting)
    return _checked(ROTARY, spec, q, k, cos, sin, q_weight, k_weight)
