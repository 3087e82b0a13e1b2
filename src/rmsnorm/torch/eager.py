"""Eager calls on a CPU: tensors straight to the native kernels, and the autograd nodes around them.

The kernels are tried first, with the arguments as they came; only where they decline is anything checked, copied, or
left to the composite (Llama's casting with a gain or bias of certain wider dtypes). So an ordinary call pays for the
output and the kernel.

A forward pass saves its input and gain and nothing else: the backward pass needs every row twice anyway, and takes
the row's statistic again on the way (one more multiply-add an element, from the first cache level).
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.compiler import is_compiling

from rmsnorm import native
from rmsnorm.native.codes import NORM_KINDS
from rmsnorm.spec import check_bool, check_casting, check_spec
from rmsnorm.torch import checks, composite, dispatch
from rmsnorm.torch.bindings import FLAGS, FRESH_FLAGS, kernels_of, load_nodes
from rmsnorm.torch.dispatch import Way

Shape = int | Sequence[int]
Wants = Sequence[bool]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
OptionalTensor = TypeVar("OptionalTensor", Tensor, Tensor | None)


@lru_cache
def _flags(zero_centered: bool, casting: str) -> int:
    flags = FLAGS
    flags |= native.ZERO_CENTERED if check_bool(zero_centered) else 0
    flags |= native.ROUND_FIRST if check_casting(casting) == "llama" else 0
    return flags


def rows_contiguous(t: OptionalTensor, dims: int) -> OptionalTensor:
    """``t``, copied if its last ``dims`` dimensions do not lie together in memory, or if its sign is only a flag."""
    if t is None:
        return None
    expected = 1
    for extent, stride in zip(reversed(t.shape[-dims:]), reversed(t.stride()[-dims:]), strict=True):
        if stride != expected and extent != 1:
            return t.clone(memory_format=torch.contiguous_format)
        expected *= extent
    return t.resolve_neg()


def laid_out(made: Tensor, like: Tensor) -> Tensor:
    """``made`` with the strides of ``torch.empty_like(like)``, copied if it has others: what every result has.

    Dense layouts (permuted, channels_last) are kept, as torch's elementwise operators keep them. A transform's wrapper
    has the layout that the transform gives it.
    """
    if torch._C._functorch.is_functorch_wrapped_tensor(made):
        return made
    y = torch.empty_like(like, dtype=made.dtype)
    return made if made.stride() == y.stride() else y.copy_(made)


def output_dtype(input: Tensor, weight: Tensor | None, bias: Tensor | None, casting: str) -> torch.dtype:
    """The input's, or with Llama's casting what promotion makes of input, weight and bias."""
    dtype = input.dtype
    if casting == "llama":
        for t in (weight, bias):
            dtype = dtype if t is None else torch.promote_types(dtype, t.dtype)
    return dtype


def rms_norm(
    input: Tensor,
    shape: Shape,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float | None,
    p: float,
    zero_centered: bool,
    casting: str,
    out: Tensor | None = None,
) -> Tensor:
    """y, without autograd."""
    flags = _flags(zero_centered, casting)
    if out is not None:
        y = out
    elif casting == "once":
        y = torch.empty_like(input)
        flags |= native.FRESH
    else:
        y = torch.empty_like(input, dtype=output_dtype(input, weight, bias, casting))
    if kernels_of(input).rms_norm(input, shape, weight, bias, y, eps, p, flags):
        return y
    spec = check_spec(shape, eps, p, zero_centered, casting)
    dtype = _check(input, spec.normalized_shape, weight, bias, casting, out)
    x = rows_contiguous(input, len(spec.normalized_shape))
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    if not kernels_of(x).rms_norm(x, spec.normalized_shape, weight, bias, y, eps, p, flags):
        y = composite.rms_norm(
            x, spec.normalized_shape, weight, eps, bias=bias, p=p, zero_centered=zero_centered, casting=casting
        )
    return laid_out(y, input) if out is None else out.copy_(y)


def layer_norm(
    input: Tensor,
    shape: Shape,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float | None,
    out: Tensor | None = None,
) -> Tensor:
    """y, without autograd."""
    if out is None:
        y, flags = torch.empty_like(input), FRESH_FLAGS
    else:
        y, flags = out, FLAGS
    if kernels_of(input).layer_norm(input, shape, weight, bias, y, eps, flags):
        return y
    spec = check_spec(shape, eps)
    dtype = _check(input, spec.normalized_shape, weight, bias, "once", out)
    x = rows_contiguous(input, len(spec.normalized_shape))
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    if not kernels_of(x).layer_norm(x, spec.normalized_shape, weight, bias, y, eps, flags):
        y = composite.layer_norm(x, spec.normalized_shape, weight, bias, eps)
    return laid_out(y, input) if out is None else out.copy_(y)


def add_rms_norm(
    input: Tensor,
    residual: Tensor,
    shape: Shape,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float | None,
    p: float,
    zero_centered: bool,
    casting: str,
) -> tuple[Tensor, Tensor]:
    """(normed, new_residual), without autograd."""
    if input.dtype == residual.dtype:
        flags = _flags(zero_centered, casting) | native.FRESH
        y = torch.empty_like(input, dtype=output_dtype(input, weight, bias, casting))
        new = torch.empty_like(residual)
        if kernels_of(input).add_rms_norm(input, residual, shape, weight, bias, y, new, eps, p, flags):
            return y, new
    shape = check_spec(shape, eps, p, zero_centered, casting).normalized_shape
    _check(input, shape, weight, bias, casting, None)
    checks.check_alike("residual", residual, input)
    new = laid_out((input + residual).to(residual.dtype), residual)
    y = rms_norm(new, shape, weight, bias, eps, p, zero_centered, casting)
    return laid_out(y if input.dtype == residual.dtype else y.to(input.dtype), input), new


def add_rms_norm_inplace(
    input: Tensor,
    residual: Tensor,
    shape: Shape,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float | None,
    p: float,
    zero_centered: bool,
    casting: str,
) -> bool:
    """normed written to ``input``, the sum to ``residual``; False, and nothing written, where the kernels decline."""
    if input.dtype != residual.dtype:
        return False
    flags = _flags(zero_centered, casting)
    return kernels_of(input).add_rms_norm(input, residual, shape, weight, bias, input, residual, eps, p, flags)


def _check(
    input: Tensor,
    shape: tuple[int, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    casting: str,
    out: Tensor | None,
) -> torch.dtype:
    """Raises if it was for an error that the kernels declined; else returns the result's dtype."""
    checks.check_tensors(shape, input, weight, bias)
    dtype = output_dtype(input, weight, bias, casting)
    if out is not None:
        checks.check_out(out, dtype, input, weight, bias)
    return dtype


def rms_norm_backward(
    dy: Tensor,
    input: Tensor,
    shape: Shape,
    weight: Tensor | None,
    bias: Tensor | None,
    wants: Wants,
    plus: Tensor | None,
    eps: float | None,
    p: float,
    zero_centered: bool,
    casting: str,
) -> Gradients:
    """(dx + plus, dweight, dbias) as far as wanted, without autograd."""
    last = eps, p, _flags(zero_centered, casting)
    dx, dweight, dbias = _empty(input, weight, bias, wants)
    if kernels_of(input).rms_norm_backward(dy, input, shape, weight, dx, plus, dweight, dbias, *last):
        return dx, dweight, dbias
    spec = check_spec(shape, eps, p, zero_centered, casting)
    _check_backward(spec.normalized_shape, input, weight, bias, dy, plus)
    dims = len(spec.normalized_shape)
    x, dy, plus = rows_contiguous(input, dims), rows_contiguous(dy, dims), rows_contiguous(plus, dims)
    dx, dweight, dbias = _empty(x, weight, bias, wants)
    if not kernels_of(x).rms_norm_backward(dy, x, spec.normalized_shape, weight, dx, plus, dweight, dbias, *last):
        dx, dweight, dbias = composite.rms_norm_backward(dy, input, weight, bias, spec, wants)
        dx = dx if plus is None or dx is None else dx + plus
    return None if dx is None else laid_out(dx, input), dweight, dbias


def layer_norm_backward(
    dy: Tensor,
    input: Tensor,
    shape: Shape,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float | None,
    wants: Wants,
) -> Gradients:
    """(dx, dweight, dbias) as far as wanted, without autograd."""
    dx, dweight, dbias = _empty(input, weight, bias, wants)
    if kernels_of(input).layer_norm_backward(dy, input, shape, weight, dx, None, dweight, dbias, eps, FLAGS):
        return dx, dweight, dbias
    spec = check_spec(shape, eps)
    _check_backward(spec.normalized_shape, input, weight, bias, dy, None)
    shape, dims = spec.normalized_shape, len(spec.normalized_shape)
    x, dy = rows_contiguous(input, dims), rows_contiguous(dy, dims)
    dx, dweight, dbias = _empty(x, weight, bias, wants)
    if not kernels_of(x).layer_norm_backward(dy, x, shape, weight, dx, None, dweight, dbias, eps, FLAGS):
        dx, dweight, dbias = composite.layer_norm_backward(dy, input, weight, bias, spec, wants)
    return None if dx is None else laid_out(dx, input), dweight, dbias


def _check_backward(
    shape: tuple[int, ...],
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    dy: Tensor,
    plus: Tensor | None,
) -> None:
    checks.check_tensors(shape, input, weight, bias)
    checks.check_alike("dy", dy, input)
    if plus is not None:
        checks.check_alike("plus", plus, input)


def _empty(input: Tensor, weight: Tensor | None, bias: Tensor | None, wants: Wants) -> Gradients:
    wants_dx, wants_dweight, wants_dbias = wants
    return (
        torch.empty_like(input) if wants_dx else None,
        torch.empty_like(weight) if wants_dweight and weight is not None else None,
        torch.empty_like(bias) if wants_dbias and bias is not None else None,
    )


def first_order(dy: Tensor, input: Tensor, weight: Tensor | None) -> bool:
    """Whether a backward pass is an ordinary one, whose result is not differentiated or mapped over."""
    return not torch.is_grad_enabled() and dispatch.eager_way(dy, input, weight) != Way.COMPOSITE


def gradients(
    norm: str,
    dy: Tensor,
    plus: Tensor | None,
    input: Tensor,
    shape: Shape,
    weight: Tensor | None,
    bias: Tensor | None,
    wants: Wants,
    *how: Any,
) -> Gradients:
    """(dx + plus, dweight, dbias) in a backward pass, which may be differentiated itself; ``how``: from eps on."""
    if is_compiling():  # compiled autograd
        extents = [shape] if isinstance(shape, int) else list(shape)
        if norm == "layer":
            found = torch.ops.rmsnorm.layer_norm_backward(dy, input, extents, weight, bias, wants, *how)
        else:
            found = torch.ops.rmsnorm.rms_norm_backward(dy, input, extents, weight, bias, plus, wants, *how)
        dx, dweight, dbias = (g if w else None for g, w in zip(found, wants, strict=True))
        return dx, dweight, dbias
    ordinary = first_order(dy, input, weight) and (plus is None or first_order(plus, input, None))
    if not ordinary:
        checks.check_memories(dy=dy, input=input, weight=weight, plus=plus)
    if norm == "layer":
        (eps,) = how
        if ordinary:
            return layer_norm_backward(dy, input, shape, weight, bias, eps, wants)
        return composite.layer_norm_backward(dy, input, weight, bias, check_spec(shape, eps), wants)
    if ordinary:
        return rms_norm_backward(dy, input, shape, weight, bias, wants, plus, *how)
    dx, dweight, dbias = composite.rms_norm_backward(dy, input, weight, bias, check_spec(shape, *how), wants)
    return (dx if plus is None or dx is None else dx + plus), dweight, dbias


def saveable(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """``tensors``, those made in inference mode copied: autograd refuses to save them, and torch's own norms, whose
    operators save their results, take them."""
    return tuple(t.clone() if t is not None and t.is_inference() else t for t in tensors)


class RMSNormFunction(torch.autograd.Function):
    """rms_norm for autograd where nodes.cpp has no node for it; ``how`` is (eps, p, zero_centered, casting)."""

    @staticmethod
    def forward(ctx, input, shape, weight, bias, *how):
        ctx.save_for_backward(*saveable(input, weight, bias))
        ctx.shape, ctx.how = shape, how
        return rms_norm(input, shape, weight, bias, *how)

    @staticmethod
    def backward(ctx, dy):
        input, weight, bias = ctx.saved_tensors
        needs = ctx.needs_input_grad
        wants = (needs[0], needs[2], needs[3])
        dx, dweight, dbias = gradients("rms", dy, None, input, ctx.shape, weight, bias, wants, *ctx.how)
        return dx, None, dweight, dbias, None, None, None, None


class LayerNormFunction(torch.autograd.Function):
    """layer_norm for autograd."""

    @staticmethod
    def forward(ctx, input, shape, weight, bias, eps):
        ctx.save_for_backward(*saveable(input, weight, bias))
        ctx.shape, ctx.eps = shape, eps
        return layer_norm(input, shape, weight, bias, eps)

    @staticmethod
    def backward(ctx, dy):
        input, weight, bias = ctx.saved_tensors
        needs = ctx.needs_input_grad
        wants = (needs[0], needs[2], needs[3])
        dx, dweight, dbias = gradients("layer", dy, None, input, ctx.shape, weight, bias, wants, ctx.eps)
        return dx, None, dweight, dbias, None


class AddRMSNormFunction(torch.autograd.Function):
    """add_rms_norm for autograd; saves the sum, which is its second output."""

    @staticmethod
    def forward(ctx, input, residual, shape, weight, bias, *how):
        normed, new_residual = add_rms_norm(input, residual, shape, weight, bias, *how)
        ctx.save_for_backward(*saveable(new_residual, weight, bias))
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.how, ctx.input_dtype = shape, how, input.dtype
        return normed, new_residual

    @staticmethod
    def backward(ctx, dnormed, dnew):
        x, weight, bias = ctx.saved_tensors
        needs = ctx.needs_input_grad
        wants = (needs[0] or needs[1], needs[3], needs[4])
        if dnormed is None:  # only the sum was used
            dsum, dweight, dbias = dnew, None, None
        else:
            dy = dnormed if ctx.input_dtype == x.dtype else dnormed.to(x.dtype)
            plus = dnew if wants[0] else None
            dsum, dweight, dbias = gradients("rms", dy, plus, x, ctx.shape, weight, bias, wants, *ctx.how)
        dinput = dsum.to(ctx.input_dtype) if needs[0] and dsum is not None else None
        return dinput, dsum if needs[1] else None, None, dweight, dbias, None, None, None, None


# ---- the calls in C++ ----


def node_gradients(
    norm: int,
    dy: Tensor,
    plus: Tensor | None,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    dims: int,
    wants: Wants,
    eps: float,
    *how: float | bool | str,
) -> Gradients:
    """What a C++ node leaves to Python: layouts to be copied, and whatever is differentiated or mapped over."""
    how = how if NORM_KINDS[norm] == "rms" else ()
    return gradients(NORM_KINDS[norm], dy, plus, input, input.shape[-dims:], weight, bias, wants, eps, *how)


nodes, why_no_nodes = load_nodes(node_gradients)
