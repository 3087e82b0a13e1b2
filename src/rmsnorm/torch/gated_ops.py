"""The gated norm as operators of ``torch.library``, registered as those of :mod:`~rmsnorm.torch.ops` are."""

import math

import torch

from rmsnorm.spec import check_groups, check_norm_first, check_spec
from rmsnorm.torch import checks, eager, gated
from rmsnorm.torch.gated import GatedSpec
from rmsnorm.torch.registration import Node, given, gradients_fake, library, register, wanted

_NAMES = "float? eps, bool norm_before_gate, int groups, float p"
library.define(
    f"rms_norm_gated(Tensor input, Tensor gate, SymInt[] normalized_shape, Tensor? weight, {_NAMES}) -> Tensor"
)
library.define(
    "rms_norm_gated_backward(Tensor dy, Tensor input, Tensor gate, SymInt[] normalized_shape, Tensor? weight, "
    f"bool[] wants, {_NAMES}) -> (Tensor, Tensor, Tensor)"
)


def _forward_kernel(input, gate, shape, weight, *how):
    return gated.forward(input, gate, shape, weight, *how)


def _forward_any(input, gate, shape, weight, *how):
    spec = GatedSpec.of(shape, *how).check(input, gate, weight)
    return eager.laid_out(gated.expression(input, gate, weight, spec), input)


def _backward_kernel(dy, input, gate, shape, weight, wants, *how):
    return given(gated.backward(dy, input, gate, shape, weight, wants, *how), (input, gate, weight))


def _backward_any(dy, input, gate, shape, weight, wants, *how):
    gradients = gated.backward_expression(dy, input, gate, weight, GatedSpec.of(shape, *how), wants)
    return given(gradients, (input, gate, weight))


def _forward_fake(input, gate, shape, weight, eps, norm_before_gate, groups, p):
    check_spec(1, eps, p)  # not of the shape itself, whose extents may be symbols here
    check_norm_first(norm_before_gate)
    check_groups(groups, math.prod(shape))
    checks.check_tensors(tuple(shape), input, weight, None, per_head=False)
    checks.check_alike("gate", gate, input)
    return torch.empty_like(input)


def _backward_fake(dy, input, gate, shape, weight, wants, *how):
    return gradients_fake(input, gate, weight, wants)


def _save(ctx, inputs, output):
    input, gate, ctx.shape, weight, *ctx.how = inputs
    ctx.save_for_backward(input, gate, weight)


def _autograd(ctx, dy):
    input, gate, weight = ctx.saved_tensors
    wants = [ctx.needs_input_grad[i] for i in (0, 1, 3)]
    gradients = torch.ops.rmsnorm.rms_norm_gated_backward(dy, input, gate, ctx.shape, weight, wants, *ctx.how)
    dx, dz, dweight = wanted(gradients, wants)
    return dx, dz, None, dweight, None, None, None, None


register("rms_norm_gated", _forward_kernel, _forward_any, _forward_fake, Node(_save, _autograd))
register("rms_norm_gated_backward", _backward_kernel, _backward_any, _backward_fake)
