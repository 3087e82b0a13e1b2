"""QK-norm with a rotary embedding as operators of ``torch.library``."""

from dataclasses import replace

import torch

from rmsnorm.spec import check_spec, norm_spec
from rmsnorm.torch.operation import saveable
from rmsnorm.torch.registration import Node, library, register_operation, wanted
from rmsnorm.torch.rotary.eager import ROTARY, ROTARY_BACKWARD, head_dim

_TENSORS = "Tensor q, Tensor k, Tensor cos, Tensor sin, Tensor? q_weight, Tensor? k_weight"
_HOW = "float? eps, bool zero_centered, str casting"
library.define(f"rms_norm_rotary({_TENSORS}, {_HOW}) -> (Tensor, Tensor)")
library.define(
    f"rms_norm_rotary_backward(Tensor dy_q, Tensor dy_k, {_TENSORS}, bool[] wants, {_HOW}) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)


def _spec(n, eps, zero_centered, casting):
    return norm_spec("rms", n, eps, 1.0, zero_centered, casting)


def _fake_spec(n, eps, zero_centered, casting):
    """The extent may be a symbol here."""
    return replace(check_spec("rms", 1, eps, 1.0, zero_centered, casting), normalized_shape=(n,))


def _forward(make, q, k, cos, sin, q_weight, k_weight, *how):
    return make(head_dim(q), *how), (q, k, cos, sin, q_weight, k_weight)


def _backward(make, dy_q, dy_k, q, k, cos, sin, q_weight, k_weight, wants, *how):
    return make(head_dim(q), *how), (dy_q, dy_k, q, k, cos, sin, q_weight, k_weight), wants


def _save(ctx, inputs, output):
    *tensors, eps, zero_centered, casting = inputs
    if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
        raise NotImplementedError(
            "torch.ops.rmsnorm.rms_norm_rotary has no gradient of cos and sin, but one of them requires grad; detach "
            "it, or call rmsnorm.torch.rms_norm_rotary"
        )
    ctx.save_for_backward(*saveable(*tensors))
    ctx.how = eps, zero_centered, casting


def _autograd(ctx, *dy):
    wants = [ctx.needs_input_grad[i] for i in (0, 1, 4, 5)]
    gradients = torch.ops.rmsnorm.rms_norm_rotary_backward(*dy, *ctx.saved_tensors, wants, *ctx.how)
    dq, dk, dq_weight, dk_weight = wanted(gradients, wants)
    return dq, dk, None, None, dq_weight, dk_weight, None, None, None


_SPECS = _spec, _fake_spec
register_operation("rms_norm_rotary", ROTARY, _forward, _SPECS, Node(_save, _autograd))
register_operation("rms_norm_rotary_backward", ROTARY_BACKWARD, _backward, _SPECS)
