"""The plain norms on kernels, and their autograd node.

A forward pass saves its input and gain and nothing else: the backward pass needs every row twice anyway, and computes
the row's statistic again on the way (one more multiply-add per element, from the first cache level).
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from rmsnorm import native
from rmsnorm.native.codes import NORM_KINDS
from rmsnorm.spec import NormSpec, norm_spec
from rmsnorm.torch import checks
from rmsnorm.torch.bindings import FLAGS, Kernels, kernels_of, load_nodes
from rmsnorm.torch.norm import composite
from rmsnorm.torch.operation import Operation, Tensors, Wants, laid_out, recorded, run, run_backward, saveable


@lru_cache(maxsize=4096)
def arguments(spec: NormSpec) -> tuple:
    """What a norm's kernel is told after tensors and results, which are fresh memory."""
    flags = FLAGS | native.FRESH
    flags |= native.ZERO_CENTERED if spec.zero_centered else 0
    flags |= native.ROUND_FIRST if spec.rounds_first else 0
    return NORM_KINDS.index(spec.kind), spec.normalized_shape, spec.eps, spec.p, flags


def _over(spec: NormSpec) -> tuple:
    """The same for results that are somebody's memory."""
    *others, flags = arguments(spec)
    return *others, flags & ~native.FRESH


def output_dtype(spec: NormSpec, input: Tensor, weight: Tensor | None, bias: Tensor | None) -> torch.dtype:
    """The input's, or if x̂ is rounded first what promotion makes of input, weight and bias."""
    dtype = input.dtype
    if spec.rounds_first:
        for t in (weight, bias):
            dtype = dtype if t is None else torch.promote_types(dtype, t.dtype)
    return dtype


def _attempt(kernels: Kernels, spec: NormSpec, tensors: Tensors, _: None) -> Tensors | None:
    input, residual, weight, bias = tensors
    if spec.rounds_first:
        y = torch.empty_like(input, dtype=output_dtype(spec, input, weight, bias))
    else:
        y = torch.empty_like(input)  # a dtype would cost 0.2 µs
    total = None if residual is None else torch.empty_like(residual)
    kind, shape, eps, p, flags = arguments(spec)
    served = kernels.norm(input, residual, weight, bias, y, total, kind, shape, eps, p, flags)
    return (y, total) if served else None


def _check(spec: NormSpec, input: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> None:
    checks.check_tensors(spec.normalized_shape, input, weight, bias)
    if residual is not None:
        checks.check_alike("residual", residual, input)


def _operator(
    spec: NormSpec, input: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None
) -> Tensors:
    operators, shape = torch.ops.rmsnorm, list(spec.normalized_shape)
    if spec.kind == "layer":
        return operators.layer_norm(input, shape, weight, bias, spec.eps), None
    if residual is None:
        return operators.rms_norm(input, shape, weight, bias, *spec.how), None
    return operators.add_rms_norm(input, residual, shape, weight, bias, *spec.how)


NORM = Operation(
    names=("input", "residual", "weight", "bias"),
    rows=2,
    like=(0, 1),
    attempt=_attempt,
    check=_check,
    composite=composite.norm,
    operator=_operator,
)
"""→ (y, the sum of input and residual)."""


def _attempt_backward(kernels: Kernels, spec: NormSpec, tensors: Tensors, wants: Wants) -> Tensors | None:
    dy, plus, input, weight, bias = tensors
    of_input, of_weight, of_bias = wants
    dx = torch.empty_like(input) if of_input else None
    dweight = torch.empty_like(weight) if of_weight and weight is not None else None
    dbias = torch.empty_like(bias) if of_bias and bias is not None else None
    kind, shape, eps, p, flags = arguments(spec)
    served = kernels.norm_backward(dy, plus, input, weight, dx, dweight, dbias, kind, shape, eps, p, flags)
    return (dx, dweight, dbias) if served else None


def _check_backward(
    spec: NormSpec, dy: Tensor, plus: Tensor | None, input: Tensor, weight: Tensor | None, bias: Tensor | None
) -> None:
    checks.check_tensors(spec.normalized_shape, input, weight, bias)
    checks.check_alike("dy", dy, input)
    if plus is not None:
        checks.check_alike("plus", plus, input)


NORM_BACKWARD = Operation(
    names=("dy", "plus", "input", "weight", "bias"),
    rows=3,
    like=(2, 3, 4),
    attempt=_attempt_backward,
    check=_check_backward,
    composite=composite.norm_backward,
)
"""→ (dx + plus, dweight, dbias)."""


def forward(spec: NormSpec, tensors: Tensors) -> Tensors:
    """(y, sum) of (input, residual, weight, bias), without autograd."""
    input, residual, weight, bias = tensors
    if residual is None or residual.dtype == input.dtype:
        return run(NORM, spec, tensors)
    _check(spec, input, residual, weight, bias)
    total = laid_out((input + residual).to(residual.dtype), residual)
    y, _ = run(NORM, spec, (total, None, weight, bias))
    return laid_out(y.to(input.dtype), input), total


def forward_into(spec: NormSpec, input: Tensor, weight: Tensor | None, bias: Tensor | None, out: Tensor) -> Tensor:
    """``out``, with y written to it, without autograd."""
    if not kernels_of(input).norm(input, None, weight, bias, out, None, *_over(spec)):
        _check(spec, input, None, weight, bias)
        checks.check_out(out, output_dtype(spec, input, weight, bias), input, weight, bias)
        out.copy_(forward(spec, (input, None, weight, bias))[0])
    return out


def forward_inplace(
    spec: NormSpec, input: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None
) -> bool:
    """y into ``input``, and the sum into ``residual``; False, and nothing is written, if the kernel declines."""
    if input.dtype != residual.dtype:
        return False
    return kernels_of(input).norm(input, residual, weight, bias, input, residual, *_over(spec))


class NormFunction(torch.autograd.Function):
    """A norm for autograd, for calls that the C++ nodes leave to Python: y, or (y, sum) with a residual."""

    @staticmethod
    def forward(ctx, spec, input, residual, weight, bias):
        y, total = forward(spec, (input, residual, weight, bias))
        ctx.save_for_backward(*saveable(input if residual is None else total, weight, bias))
        ctx.set_materialize_grads(False)
        ctx.spec, ctx.input_dtype = spec, input.dtype
        return y if residual is None else (y, total)

    @staticmethod
    def backward(ctx, dy, dtotal=None):
        x, weight, bias = ctx.saved_tensors
        _, of_input, of_residual, of_weight, of_bias = ctx.needs_input_grad
        wants = (of_input or of_residual, of_weight, of_bias)
        same = ctx.input_dtype == x.dtype
        if dy is None:  # only the sum was used
            dx, dweight, dbias = dtotal, None, None
        else:
            dy = dy if same else dy.to(x.dtype)
            tensors = dy, dtotal if wants[0] else None, x, weight, bias
            dx, dweight, dbias = run_backward(NORM_BACKWARD, _backward_operator, ctx.spec, tensors, wants)
        dinput = dx if same or dx is None else dx.to(ctx.input_dtype)
        return None, dinput if of_input else None, dx if of_residual else None, dweight, dbias


recorded_norm = recorded(NormFunction)
"""(spec, input, residual, weight, bias) → what NormFunction returns."""


def _backward_operator(spec: NormSpec, tensors: Tensors, wants: Wants) -> Tensors:
    dy, plus, input, weight, bias = tensors
    shape = list(spec.normalized_shape)
    if spec.kind == "layer":
        return torch.ops.rmsnorm.layer_norm_backward(dy, input, shape, weight, bias, wants, spec.eps)
    return torch.ops.rmsnorm.rms_norm_backward(dy, input, shape, weight, bias, plus, wants, *spec.how)


# ---- the calls in C++ ----


def node_gradients(
    kind: int,
    dy: Tensor,
    plus: Tensor | None,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    dims: int,
    wants: Wants,
    *how: Any,
) -> Tensors:
    """What a C++ node leaves to Python: layouts to be copied, and whatever is differentiated or mapped over."""
    spec = norm_spec(NORM_KINDS[kind], input.shape[-dims:], *how)
    return run_backward(NORM_BACKWARD, _backward_operator, spec, (dy, plus, input, weight, bias), wants)


nodes, why_no_nodes = load_nodes(node_gradients)
