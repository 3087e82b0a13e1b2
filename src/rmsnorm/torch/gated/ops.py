"""The gated norm as operators of ``torch.library``."""

import math

import torch

from rmsnorm.spec import check_groups, check_norm_first, check_spec
from rmsnorm.torch.gated.eager import GATED, GATED_BACKWARD
from rmsnorm.torch.gated.spec import GatedSpec, gated_spec
from rmsnorm.torch.operation import saveable
from rmsnorm.torch.registration import Node, register_operation, wanted


def _fake_spec(shape, eps, norm_before_gate, groups, p):
    """All but the shape is checked: its extents may be symbols here."""
    check_groups(groups, math.prod(shape))
    return GatedSpec(tuple(shape), groups, check_norm_first(norm_before_gate), check_spec("rms", 1, eps, p))


def _forward(make, input, gate, shape, weight, *how):
    return make(shape, *how), (input, gate, weight)


def _backward(make, dy, input, gate, shape, weight, wants, *how):
    return make(shape, *how), (dy, input, gate, weight), wants


def _save(ctx, inputs, output):
    input, gate, ctx.shape, weight, *ctx.how = inputs
    ctx.save_for_backward(*saveable(input, gate, weight))


def _autograd(ctx, dy):
    input, gate, weight = ctx.saved_tensors
    wants = [ctx.needs_input_grad[i] for i in (0, 1, 3)]
    gradients = torch.ops.rmsnorm.rms_norm_gated_backward(dy, input, gate, ctx.shape, weight, wants, *ctx.how)
    dx, dz, dweight = wanted(gradients, wants)
    return dx, dz, None, dweight, None, None, None, None


_SPECS = gated_spec, _fake_spec
register_operation("rms_norm_gated", GATED, _forward, _SPECS, Node(_save, _autograd))
register_operation("rms_norm_gated_backward", GATED_BACKWARD, _backward, _SPECS)
