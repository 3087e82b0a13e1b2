"""The kernels as operators of ``torch.library``: what ``torch.compile`` and ``torch.export`` see.

``torch.ops.rmsnorm.*`` are defined for CPU and CUDA by the kernels, elsewhere by the composite, with fakes, autograd
and transforms through the composite. A result has the strides that ``torch.empty_like`` gives its input's.
"""

from collections.abc import Sequence

import torch

from rmsnorm.spec import check_spec
from rmsnorm.torch import checks, composite, eager
from rmsnorm.torch.registration import Node, given, gradients_fake, library, register, wanted

_NAMES = "float? eps, float p, bool zero_centered, str casting"
library.define(f"rms_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, {_NAMES}) -> Tensor")
library.define(
    "rms_norm_backward(Tensor dy, Tensor input, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, "
    f"Tensor? plus, bool[] wants, {_NAMES}) -> (Tensor, Tensor, Tensor)"
)
library.define(
    "add_rms_norm(Tensor input, Tensor residual, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, "
    f"{_NAMES}) -> (Tensor, Tensor)"
)
library.define(
    "layer_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, float? eps) -> Tensor"
)
library.define(
    "layer_norm_backward(Tensor dy, Tensor input, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, "
    "bool[] wants, float? eps) -> (Tensor, Tensor, Tensor)"
)
_ops = torch.ops.rmsnorm


# ---- what the public functions call while a graph is being captured ----


def rms_norm(input, normalized_shape, weight, eps, *, bias, p, zero_centered, casting):
    """:func:`rmsnorm.torch.rms_norm` as one operator."""
    return _ops.rms_norm(input, _list(normalized_shape), weight, bias, eps, p, zero_centered, casting)


def layer_norm(input, normalized_shape, weight, bias, eps):
    """:func:`rmsnorm.torch.layer_norm` as one operator."""
    return _ops.layer_norm(input, _list(normalized_shape), weight, bias, eps)


def add_rms_norm(input, residual, normalized_shape, weight, eps, *, bias, p, zero_centered, casting):
    """:func:`rmsnorm.torch.add_rms_norm` as one operator."""
    return _ops.add_rms_norm(input, residual, _list(normalized_shape), weight, bias, eps, p, zero_centered, casting)


def _list(normalized_shape: int | Sequence[int]) -> list[int]:
    return [normalized_shape] if isinstance(normalized_shape, int) else list(normalized_shape)


# ---- implementations: kernels on CPU and CUDA, the composite elsewhere ----


def _rms_norm_kernel(input, shape, weight, bias, *how):
    return eager.rms_norm(input, shape, weight, bias, *how)


def _rms_norm_backward_kernel(dy, input, shape, weight, bias, plus, wants, *how):
    return given(eager.rms_norm_backward(dy, input, shape, weight, bias, wants, plus, *how), (input, weight, bias))


def _add_rms_norm_kernel(input, residual, shape, weight, bias, *how):
    return eager.add_rms_norm(input, residual, shape, weight, bias, *how)


def _layer_norm_kernel(input, shape, weight, bias, eps):
    return eager.layer_norm(input, shape, weight, bias, eps)


def _layer_norm_backward_kernel(dy, input, shape, weight, bias, wants, eps):
    return given(eager.layer_norm_backward(dy, input, shape, weight, bias, eps, wants), (input, weight, bias))


def _keywords(bias, p, zero_centered, casting):
    return {"bias": bias, "p": p, "zero_centered": zero_centered, "casting": casting}


def _rms_norm_any(input, shape, weight, bias, eps, *how):
    return eager.laid_out(composite.rms_norm(input, shape, weight, eps, **_keywords(bias, *how)), input)


def _rms_norm_backward_any(dy, input, shape, weight, bias, plus, wants, eps, *how):
    spec = check_spec(shape, eps, *how)
    dx, dweight, dbias = composite.rms_norm_backward(dy, input, weight, bias, spec, wants)
    return given((dx if plus is None or dx is None else dx + plus, dweight, dbias), (input, weight, bias))


def _add_rms_norm_any(input, residual, shape, weight, bias, eps, *how):
    normed, new = composite.add_rms_norm(input, residual, shape, weight, eps, **_keywords(bias, *how))
    return eager.laid_out(normed, input), eager.laid_out(new, residual)


def _layer_norm_any(input, shape, weight, bias, eps):
    return eager.laid_out(composite.layer_norm(input, shape, weight, bias, eps), input)


def _layer_norm_backward_any(dy, input, shape, weight, bias, wants, eps):
    spec = check_spec(shape, eps)
    return given(composite.layer_norm_backward(dy, input, weight, bias, spec, wants), (input, weight, bias))


# ---- fakes: shapes and dtypes, and the errors of wrong arguments ----


def _fake(input, shape, weight, bias, dtype=None):
    checks.check_tensors(tuple(shape), input, weight, bias)
    return torch.empty_like(input, dtype=dtype)


def _rms_norm_fake(input, shape, weight, bias, eps, *how):
    casting = _checked(eps, *how)
    return _fake(input, shape, weight, bias, eager.output_dtype(input, weight, bias, casting))


def _add_rms_norm_fake(input, residual, shape, weight, bias, eps, *how):
    checks.check_alike("residual", residual, input)
    casting, dtype = _checked(eps, *how), input.dtype
    if dtype == residual.dtype:
        dtype = eager.output_dtype(input, weight, bias, casting)
    return _fake(input, shape, weight, bias, dtype), _fake(residual, shape, None, None)


def _layer_norm_fake(input, shape, weight, bias, eps):
    _checked(eps)
    return _fake(input, shape, weight, bias)


def _checked(eps, *how):
    """The casting, all else being checked; the shape is left out, since its extents may be symbols here."""
    return check_spec(1, eps, *how).casting


def _rms_norm_backward_fake(dy, input, shape, weight, bias, plus, wants, eps, *how):
    return gradients_fake(input, weight, bias, wants)


def _layer_norm_backward_fake(dy, input, shape, weight, bias, wants, eps):
    return gradients_fake(input, weight, bias, wants)


# ---- autograd of the forward operators by the backward operators ----


def _save_rms_norm(ctx, inputs, output):
    input, ctx.shape, weight, bias, *ctx.how = inputs
    ctx.save_for_backward(input, weight, bias)


def _rms_norm_autograd(ctx, dy):
    input, weight, bias = ctx.saved_tensors
    wants = [ctx.needs_input_grad[i] for i in (0, 2, 3)]
    gradients = _ops.rms_norm_backward(dy, input, ctx.shape, weight, bias, None, wants, *ctx.how)
    dx, dweight, dbias = wanted(gradients, wants)
    return dx, None, dweight, dbias, None, None, None, None


def _save_add_rms_norm(ctx, inputs, output):
    input, residual, ctx.shape, weight, bias, *ctx.how = inputs
    ctx.save_for_backward(output[1], weight, bias)
    ctx.dtypes = input.dtype, residual.dtype


def _add_rms_norm_autograd(ctx, dnormed, dnew):
    x, weight, bias = ctx.saved_tensors
    needs = ctx.needs_input_grad
    wants = [needs[0] or needs[1], needs[3], needs[4]]
    if ctx.dtypes[0] != ctx.dtypes[1]:
        dnormed = dnormed.to(x.dtype)
    gradients = _ops.rms_norm_backward(dnormed, x, ctx.shape, weight, bias, dnew, wants, *ctx.how)
    dsum, dweight, dbias = wanted(gradients, wants)
    dinput = dsum.to(ctx.dtypes[0]) if needs[0] else None
    return dinput, dsum if needs[1] else None, None, dweight, dbias, None, None, None, None


def _save_layer_norm(ctx, inputs, output):
    input, ctx.shape, weight, bias, ctx.eps = inputs
    ctx.save_for_backward(input, weight, bias)


def _layer_norm_autograd(ctx, dy):
    input, weight, bias = ctx.saved_tensors
    wants = [ctx.needs_input_grad[i] for i in (0, 2, 3)]
    gradients = _ops.layer_norm_backward(dy, input, ctx.shape, weight, bias, wants, ctx.eps)
    dx, dweight, dbias = wanted(gradients, wants)
    return dx, None, dweight, dbias, None


# ---- registration ----

_RMS, _LAYER = Node(_save_rms_norm, _rms_norm_autograd), Node(_save_layer_norm, _layer_norm_autograd)
_ADD = Node(_save_add_rms_norm, _add_rms_norm_autograd)
register("rms_norm", _rms_norm_kernel, _rms_norm_any, _rms_norm_fake, _RMS)
register("add_rms_norm", _add_rms_norm_kernel, _add_rms_norm_any, _add_rms_norm_fake, _ADD)
register("layer_norm", _layer_norm_kernel, _layer_norm_any, _layer_norm_fake, _LAYER)
register("rms_norm_backward", _rms_norm_backward_kernel, _rms_norm_backward_any, _rms_norm_backward_fake)
register("layer_norm_backward", _layer_norm_backward_kernel, _layer_norm_backward_any, _layer_norm_backward_fake)
