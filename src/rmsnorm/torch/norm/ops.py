"""The plain norms as operators of ``torch.library``: what ``torch.compile`` and ``torch.export`` see.

``torch.ops.rmsnorm.*`` are defined for CPU and CUDA by the kernels, elsewhere by the composite, with fakes, autograd
and transforms through the composite. A result has the strides that ``torch.empty_like`` gives its input's.
"""

from dataclasses import replace

import torch

from rmsnorm.spec import check_spec, norm_spec
from rmsnorm.torch.norm.eager import NORM, NORM_BACKWARD, forward
from rmsnorm.torch.operation import saveable
from rmsnorm.torch.registration import Node, register_operation, wanted

_ops = torch.ops.rmsnorm


# ---- operators' arguments as a spec and tensors ----


def _fake_spec(kind, shape, *how):
    """All but the shape is checked: its extents may be symbols here."""
    return replace(check_spec(kind, 1, *how), normalized_shape=tuple(shape))


def _rms_norm(make, input, shape, weight, bias, *how):
    return make("rms", shape, *how), (input, None, weight, bias)


def _layer_norm(make, input, shape, weight, bias, eps):
    return make("layer", shape, eps), (input, None, weight, bias)


def _add_rms_norm(make, input, residual, shape, weight, bias, *how):
    return make("rms", shape, *how), (input, residual, weight, bias)


def _rms_norm_backward(make, dy, input, shape, weight, bias, plus, wants, *how):
    return make("rms", shape, *how), (dy, plus, input, weight, bias), wants


def _layer_norm_backward(make, dy, input, shape, weight, bias, wants, eps):
    return make("layer", shape, eps), (dy, None, input, weight, bias), wants


# ---- autograd of the forward operators by the backward operators ----


def _save_rms_norm(ctx, inputs, output):
    input, ctx.shape, weight, bias, *ctx.how = inputs
    ctx.save_for_backward(*saveable(input, weight, bias))


def _rms_norm_autograd(ctx, dy):
    input, weight, bias = ctx.saved_tensors
    wants = [ctx.needs_input_grad[i] for i in (0, 2, 3)]
    gradients = _ops.rms_norm_backward(dy, input, ctx.shape, weight, bias, None, wants, *ctx.how)
    dx, dweight, dbias = wanted(gradients, wants)
    return dx, None, dweight, dbias, None, None, None, None


def _save_add_rms_norm(ctx, inputs, output):
    input, residual, ctx.shape, weight, bias, *ctx.how = inputs
    ctx.save_for_backward(*saveable(output[1], weight, bias))
    ctx.set_materialize_grads(False)
    ctx.dtypes = input.dtype, residual.dtype


def _add_rms_norm_autograd(ctx, dnormed, dnew):
    x, weight, bias = ctx.saved_tensors
    needs = ctx.needs_input_grad
    wants = [needs[0] or needs[1], needs[3], needs[4]]
    if dnormed is None:  # only the sum was used
        dsum, dweight, dbias = dnew, None, None
    else:
        dy = dnormed if ctx.dtypes[0] == ctx.dtypes[1] else dnormed.to(x.dtype)
        gradients = _ops.rms_norm_backward(dy, x, ctx.shape, weight, bias, dnew, wants, *ctx.how)
        dsum, dweight, dbias = wanted(gradients, wants)
    dinput = dsum.to(ctx.dtypes[0]) if needs[0] and dsum is not None else None
    return dinput, dsum if needs[1] else None, None, dweight, dbias, None, None, None, None


def _save_layer_norm(ctx, inputs, output):
    input, ctx.shape, weight, bias, ctx.eps = inputs
    ctx.save_for_backward(*saveable(input, weight, bias))


def _layer_norm_autograd(ctx, dy):
    input, weight, bias = ctx.saved_tensors
    wants = [ctx.needs_input_grad[i] for i in (0, 2, 3)]
    gradients = _ops.layer_norm_backward(dy, input, ctx.shape, weight, bias, wants, ctx.eps)
    dx, dweight, dbias = wanted(gradients, wants)
    return dx, None, dweight, dbias, None


# ---- registration ----

_SPECS = norm_spec, _fake_spec


def _register(name, parse, save, backward):
    register_operation(name, NORM, parse, _SPECS, Node(save, backward), lambda _, *args: forward(*args))


_register("rms_norm", _rms_norm, _save_rms_norm, _rms_norm_autograd)
_register("add_rms_norm", _add_rms_norm, _save_add_rms_norm, _add_rms_norm_autograd)
_register("layer_norm", _layer_norm, _save_layer_norm, _layer_norm_autograd)
register_operation("rms_norm_backward", NORM_BACKWARD, _rms_norm_backward, _SPECS)
register_operation("layer_norm_backward", NORM_BACKWARD, _layer_norm_backward, _SPECS)
