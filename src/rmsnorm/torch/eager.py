"""Eager calls on a CPU: tensors straight to the native kernels, and the autograd nodes around them.

A forward pass saves its input and gain and nothing else: the backward pass needs every row twice anyway, and takes
the row's statistic again on the way (one more multiply-add an element, from the first cache level).

What the kernels do not serve (Llama's casting with a gain or bias of certain wider dtypes) the composite does.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from rmsnorm import native
from rmsnorm.spec import NormSpec, check_shape, check_spec
from rmsnorm.torch import checks, composite, kernels

_PLAIN = frozenset({Tensor, torch.nn.Parameter})
_functorch_level = torch._C._functorch.peek_interpreter_stack
_dispatch_modes = torch._C._len_torch_dispatch_stack
_tracing_state = torch._C._get_tracing_state


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


def unwatched() -> bool:
    """Whether nobody (a transform, a dispatch mode, a tracer) wants to see the operations."""
    return (
        forward_ad._current_level < 0
        and _functorch_level() is None
        and _dispatch_modes() == 0
        and _tracing_state() is None
    )


def direct(input: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether a call is the kernels' to serve: ordinary CPU tensors, and nobody watches.

    Spelled out without a loop, since it stands in the way of every call. Parameters elsewhere the kernels decline.
    """
    return (
        type(input) in _PLAIN
        and (weight is None or type(weight) in _PLAIN)
        and (bias is None or type(bias) in _PLAIN)
        and input.is_cpu
        and unwatched()
        and not input.is_neg()
    )


def _rows_contiguous(t: Tensor, dims: int) -> Tensor:
    """``t``, copied if its last ``dims`` dimensions do not lie together in memory."""
    expected = 1
    for extent, stride in zip(reversed(t.shape[-dims:]), reversed(t.stride()[-dims:]), strict=True):
        if extent != 1 and stride != expected:
            return t.contiguous()
        expected *= extent
    return t


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
    if kernels.rms_norm(input, shape, weight, bias, y, plan.eps, plan.k, plan.flags):
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
    if kernels.layer_norm(input, shape, weight, bias, y, plan.eps, plan.flags):
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
        if kernels.add_rms_norm(input, residual, shape, weight, bias, y, new, plan.eps, plan.k, plan.flags):
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
    x, dy = _rows_contiguous(input, len(plan.shape)), _rows_contiguous(dy, len(plan.shape))
    plus = None if plus is None else _rows_contiguous(plus, len(plan.shape))
    dx, dweight, dbias = (
        torch.empty_like(t) if w and t is not None else None for t, w in zip((x, weight, bias), wants, strict=True)
    )
    if kernels.rms_norm_backward(dy, x, plan.shape, weight, dx, plus, dweight, dbias, plan.eps, plan.k, plan.flags):
        return dx, dweight, dbias
    dx, dweight, dbias = composite.rms_norm_backward(dy, input, weight, bias, plan.spec, wants)
    return (dx if plus is None or dx is None else dx + plus), dweight, dbias


def layer_norm_backward(
    dy: Tensor, input: Tensor, weight: Tensor | None, bias: Tensor | None, plan: Plan, wants: Wants
) -> Gradients:
    """(dx, dweight, dbias) as far as wanted, without autograd."""
    x, dy = _rows_contiguous(input, len(plan.shape)), _rows_contiguous(dy, len(plan.shape))
    dx, dweight, dbias = (
        torch.empty_like(t) if w and t is not None else None for t, w in zip((x, weight, bias), wants, strict=True)
    )
    if kernels.layer_norm_backward(dy, x, plan.shape, weight, dx, None, dweight, dbias, plan.eps, plan.flags):
        return dx, dweight, dbias
    return composite.layer_norm_backward(dy, input, weight, bias, plan.spec, wants)


def _first_order(*tensors: Tensor | None) -> bool:
    """Whether a backward pass is an ordinary one, whose result nobody differentiates or maps over."""
    return (
        not torch.is_grad_enabled()
        and unwatched()
        and all(t is None or (type(t) in _PLAIN and t.is_cpu and not t.is_neg()) for t in tensors)
    )


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
        elif _first_order(dnormed, dnew, x, weight):
            same = dnormed.dtype == x.dtype or ctx.input_dtype == x.dtype
            dy = dnormed if same else dnormed.to(x.dtype)
            dsum, dweight, dbias = rms_norm_backward(dy, x, weight, bias, ctx.plan, wants, dnew if wants[0] else None)
        else:
            dsum, dweight, dbias = composite.rms_norm_backward(dnormed, x, weight, bias, ctx.plan.spec, wants)
            dsum = dsum + dnew if wants[0] and dnew is not None else dsum
        dinput = dsum.to(ctx.input_dtype) if needs[0] and dsum is not None else None
        return dinput, dsum if needs[1] else None, None, dweight, dbias, None
