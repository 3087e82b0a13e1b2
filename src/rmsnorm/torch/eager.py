"""Eager calls on a CPU: tensors straight to the native kernels, and the autograd nodes around them.

A forward pass saves its input and gain and nothing else: the backward pass needs every row twice anyway, and takes
the row's statistic again on the way (one more multiply-add an element, from the first cache level).

What the kernels do not serve (Llama's casting with a gain or bias of certain wider dtypes) the composite does.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from rmsnorm import native
from rmsnorm.spec import NormSpec, check_shape, check_spec
from rmsnorm.torch import checks, composite, kernels



OptionalTensor = TypeVar("OptionalTensor", Tensor, Tensor | None)


class Plan(NamedTuple):
    """A checked specification in the form in which the kernels take it."""

    shape: tuple[int, ...]
    eps: float | None
    k: int
    flags: int
    spec: NormSpec


@lru_cache(maxsize=4096)
def plan(
    normalized_shape: int | tuple[int, ...],
    eps: float | None,
    p: float = 1.0,
    zero_centered: bool = False,
    casting: str = "once",
) -> Plan:
    """Cached, since it stands in the way of every call: 0.2 µs instead of 4."""
    spec = check_spec(normalized_shape, eps, p, zero_centered, casting)
    flags = kernels.FLAGS
    flags |= native.ZERO_CENTERED if spec.zero_centered else 0
    flags |= native.ROUND_FIRST if spec.casting == "llama" else 0
    return Plan(spec.normalized_shape, spec.eps, spec.k, flags, spec)


def _rows_contiguous(t: OptionalTensor, dims: int) -> OptionalTensor:
    """``t``, copied if its last ``dims`` dimensions do not lie together in memory, or if its sign is only a flag."""
    if t is None:
        return None
    expected = 1
    for extent, stride in zip(reversed(t.shape[-dims:]), reversed(t.stride()[-dims:]), strict=True):
        if stride != expected and (extent != 1 or expected == 1):
            return t.clone(memory_format=torch.contiguous_format)
        expected *= extent
    return t.resolve_neg()


def output_dtype(input: Tensor, weight: Tensor | None, bias: Tensor | None, casting: str) -> torch.dtype:
    """The input's, or with Llama's casting what promotion makes of input, weight and bias."""
    dtype = input.dtype
    if casting == "llama":
        for t in (weight, bias):
            dtype = dtype if t is None else torch.promote_types(dtype, t.dtype)
    return dtype


Shape = int | Sequence[int]


def rms_norm(
    input: Tensor, shape: Shape, weight: Tensor | None, bias: Tensor | None, plan: Plan, out: Tensor | None = None
) -> Tensor:
    """y, without autograd. ``shape`` is what the caller said; ``plan`` may come from an equal one, (8.0,) from (8,)."""
    if out is not None:
        y = out
    elif plan.flags & native.ROUND_FIRST:
        y = torch.empty_like(input, dtype=output_dtype(input, weight, bias, plan.spec.casting))
    else:
        y = torch.empty_like(input)
    flags = plan.flags | native.FRESH if out is None else plan.flags
    if kernels.rms_norm(input, shape, weight, bias, y, plan.eps, plan.k, flags):
        return y
    dtype = _check(input, shape, weight, bias, plan, out)
    x = _rows_contiguous(input, len(plan.shape))
    y = torch.empty(x.shape, dtype=dtype)
    if not kernels.rms_norm(x, plan.shape, weight, bias, y, plan.eps, plan.k, plan.flags):
        spec = plan.spec
        y = composite.rms_norm(
            x, plan.shape, weight, spec.eps, bias=bias, p=spec.p, zero_centered=spec.zero_centered, casting=spec.casting
        )
    return y if out is None else out.copy_(y)


def layer_norm(
    input: Tensor, shape: Shape, weight: Tensor | None, bias: Tensor | None, plan: Plan, out: Tensor | None = None
) -> Tensor:
    """y, without autograd."""
    y = torch.empty_like(input) if out is None else out
    flags = plan.flags | native.FRESH if out is None else plan.flags
    if kernels.layer_norm(input, shape, weight, bias, y, plan.eps, flags):
        return y
    dtype = _check(input, shape, weight, bias, plan, out)
    x = _rows_contiguous(input, len(plan.shape))
    y = torch.empty(x.shape, dtype=dtype)
    if not kernels.layer_norm(x, plan.shape, weight, bias, y, plan.eps, plan.flags):
        y = composite.layer_norm(x, plan.shape, weight, bias, plan.eps)
    return y if out is None else out.copy_(y)


def add_rms_norm(
    input: Tensor, residual: Tensor, shape: Shape, weight: Tensor | None, bias: Tensor | None, plan: Plan
) -> tuple[Tensor, Tensor]:
    """(normed, new_residual), without autograd."""
    if input.dtype == residual.dtype:
        y = torch.empty_like(input, dtype=output_dtype(input, weight, bias, plan.spec.casting))
        new = torch.empty_like(residual)
        flags = plan.flags | native.FRESH
        if kernels.add_rms_norm(input, residual, shape, weight, bias, y, new, plan.eps, plan.k, flags):
            return y, new
    _check(input, shape, weight, bias, plan, None)
    checks.check_residual(input, residual)
    new = (input + residual).to(residual.dtype)
    y = rms_norm(new, plan.shape, weight, bias, plan)
    return (y if input.dtype == residual.dtype else y.to(input.dtype)), new


def _check(
    input: Tensor, shape: Shape, weight: Tensor | None, bias: Tensor | None, plan: Plan, out: Tensor | None
) -> torch.dtype:
    """Raises if it was for an error that the kernels declined; else returns the result's dtype."""
    checks.check_tensors(check_shape(shape), input, weight, bias)
    dtype = output_dtype(input, weight, bias, plan.spec.casting)
    if out is not None:
        checks.check_out(out, dtype, input, weight, bias)
    return dtype


Wants = Sequence[bool]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def rms_norm_backward(
    dy: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    plan: Plan,
    wants: Wants,
    plus: Tensor | None = None,
) -> Gradients:
    """(dx + plus, dweight, dbias) as far as wanted, without autograd."""
    dx, dweight, dbias = _empty(input, weight, bias, wants)
    last = plan.eps, plan.k, plan.flags
    if kernels.rms_norm_backward(dy, input, plan.shape, weight, dx, plus, dweight, dbias, *last):
        return dx, dweight, dbias
    dims = len(plan.shape)
    x, dy, plus = _rows_contiguous(input, dims), _rows_contiguous(dy, dims), _rows_contiguous(plus, dims)
    dx, dweight, dbias = _empty(x, weight, bias, wants)
    if kernels.rms_norm_backward(dy, x, plan.shape, weight, dx, plus, dweight, dbias, *last):
        return dx, dweight, dbias
    dx, dweight, dbias = composite.rms_norm_backward(dy, input, weight, bias, plan.spec, wants)
    return (dx if plus is None or dx is None else dx + plus), dweight, dbias


def layer_norm_backward(
    dy: Tensor, input: Tensor, weight: Tensor | None, bias: Tensor | None, plan: Plan, wants: Wants
) -> Gradients:
    """(dx, dweight, dbias) as far as wanted, without autograd."""
    dx, dweight, dbias = _empty(input, weight, bias, wants)
    if kernels.layer_norm_backward(dy, input, plan.shape, weight, dx, None, dweight, dbias, plan.eps, plan.flags):
        return dx, dweight, dbias
    x, dy = _rows_contiguous(input, len(plan.shape)), _rows_contiguous(dy, len(plan.shape))
    dx, dweight, dbias = _empty(x, weight, bias, wants)
    if kernels.layer_norm_backward(dy, x, plan.shape, weight, dx, None, dweight, dbias, plan.eps, plan.flags):
        return dx, dweight, dbias
    return composite.layer_norm_backward(dy, input, weight, bias, plan.spec, wants)


def _empty(input: Tensor, weight: Tensor | None, bias: Tensor | None, wants: Wants) -> Gradients:
    return (
        torch.empty_like(input) if wants[0] else None,
        torch.empty_like(weight) if wants[1] and weight is not None else None,
        torch.empty_like(bias) if wants[2] and bias is not None else None,
    )


def _first_order(dy: Tensor, input: Tensor, weight: Tensor | None) -> bool:
    """Whether a backward pass is an ordinary one, whose result nobody differentiates or maps over."""
    return not torch.is_grad_enabled() and kernels.gate(dy, input, weight) != native.COMPOSITE


class RMSNormFunction(torch.autograd.Function):
    """rms_norm for autograd."""

    @staticmethod
    def forward(ctx, input, shape, weight, bias, plan):
        ctx.save_for_backward(input, weight, bias)
        ctx.plan = plan
        return rms_norm(input, shape, weight, bias, plan)

    @staticmethod
    def backward(ctx, dy):
        input, weight, bias = ctx.saved_tensors
        needs = ctx.needs_input_grad
        wants = (needs[0], needs[2], needs[3])
        if _first_order(dy, input, weight):
            dx, dweight, dbias = rms_norm_backward(dy, input, weight, bias, ctx.plan, wants)
        else:
            dx, dweight, dbias = composite.rms_norm_backward(dy, input, weight, bias, ctx.plan.spec, wants)
        return dx, None, dweight, dbias, None


class LayerNormFunction(torch.autograd.Function):
    """layer_norm for autograd."""

    @staticmethod
    def forward(ctx, input, shape, weight, bias, plan):
        ctx.save_for_backward(input, weight, bias)
        ctx.plan = plan
        return layer_norm(input, shape, weight, bias, plan)

    @staticmethod
    def backward(ctx, dy):
        input, weight, bias = ctx.saved_tensors
        needs = ctx.needs_input_grad
        wants = (needs[0], needs[2], needs[3])
        if _first_order(dy, input, weight):
            dx, dweight, dbias = layer_norm_backward(dy, input, weight, bias, ctx.plan, wants)
        else:
            dx, dweight, dbias = composite.layer_norm_backward(dy, input, weight, bias, ctx.plan.spec, wants)
        return dx, None, dweight, dbias, None


class AddRMSNormFunction(torch.autograd.Function):
    """add_rms_norm for autograd; saves the sum, which is its second output."""

    @staticmethod
    def forward(ctx, input, residual, shape, weight, bias, plan):
        normed, new_residual = add_rms_norm(input, residual, shape, weight, bias, plan)
        ctx.save_for_backward(new_residual, weight, bias)
        ctx.set_materialize_grads(False)
        ctx.plan, ctx.input_dtype = plan, input.dtype
        return normed, new_residual

    @staticmethod
    def backward(ctx, dnormed, dnew):
        x, weight, bias = ctx.saved_tensors
        needs = ctx.needs_input_grad
        wants = (needs[0] or needs[1], needs[3], needs[4])
        if dnormed is None:  # only the sum was used
            dsum, dweight, dbias = dnew, None, None
        elif _first_order(dnormed, x, weight) and (dnew is None or _first_order(dnew, x, None)):
            same = dnormed.dtype == x.dtype or ctx.input_dtype == x.dtype
            dy = dnormed if same else dnormed.to(x.dtype)
            dsum, dweight, dbias = rms_norm_backward(dy, x, weight, bias, ctx.plan, wants, dnew if wants[0] else None)
        else:
            dsum, dweight, dbias = composite.rms_norm_backward(dnormed, x, weight, bias, ctx.plan.spec, wants)
            dsum = dsum + dnew if wants[0] and dnew is not None else dsum
        dinput = dsum.to(ctx.input_dtype) if needs[0] and dsum is not None else None
        return dinput, dsum if needs[1] else None, None, dweight, dbias, None
