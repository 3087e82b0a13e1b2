"""The gated norm on kernels, and its autograd node."""

from functools import lru_cache

import torch
from torch import Tensor

from rmsnorm.torch import checks
from rmsnorm.torch.bindings import FRESH_FLAGS, Kernels
from rmsnorm.torch.gated import composite
from rmsnorm.torch.gated.spec import GatedSpec
from rmsnorm.torch.operation import Operation, Tensors, Wants, recorded, run, run_backward, saveable


@lru_cache(maxsize=4096)
def arguments(spec: GatedSpec) -> tuple:
    """What the kernels are told after tensors and results."""
    return spec.normalized_shape, spec.group.eps, spec.group.p, spec.groups, spec.norm_first, FRESH_FLAGS


def _attempt(kernels: Kernels, spec: GatedSpec, tensors: Tensors, _: None) -> Tensors | None:
    input, gate, weight = tensors
    y = torch.empty_like(input)
    shape, eps, p, groups, norm_first, flags = arguments(spec)
    return (y,) if kernels.gated(input, gate, weight, y, shape, eps, p, groups, norm_first, flags) else None


def _check(spec: GatedSpec, input: Tensor, gate: Tensor, weight: Tensor | None) -> None:
    checks.check_tensors(spec.normalized_shape, input, weight, None, per_head=False)
    checks.check_alike("gate", gate, input)


def _operator(spec: GatedSpec, input: Tensor, gate: Tensor, weight: Tensor | None) -> Tensors:
    how = spec.group.eps, spec.norm_first, spec.groups, spec.group.p
    return (torch.ops.rmsnorm.rms_norm_gated(input, gate, list(spec.normalized_shape), weight, *how),)


GATED = Operation(
    names=("input", "gate", "weight"),
    rows=2,
    like=(0,),
    attempt=_attempt,
    check=_check,
    composite=composite.gated,
    operator=_operator,
)
"""→ (y,)."""


def _attempt_backward(kernels: Kernels, spec: GatedSpec, tensors: Tensors, wants: Wants) -> Tensors | None:
    """Both gradients that have rows are always made: one costs nothing once the other is there."""
    _, input, gate, weight = tensors
    dx, dgate = torch.empty_like(input), torch.empty_like(gate)
    dweight = torch.empty_like(weight) if wants[2] and weight is not None else None
    served = kernels.gated_backward(*tensors, dx, dgate, dweight, *arguments(spec))
    return (dx, dgate, dweight) if served else None


def _check_backward(spec: GatedSpec, dy: Tensor, input: Tensor, gate: Tensor, weight: Tensor | None) -> None:
    _check(spec, input, gate, weight)
    checks.check_alike("dy", dy, input)


GATED_BACKWARD = Operation(
    names=("dy", "input", "gate", "weight"),
    rows=3,
    like=(1, 2, 3),
    attempt=_attempt_backward,
    check=_check_backward,
    composite=composite.gated_backward,
)
"""→ (dx, dgate, dweight)."""


class GatedFunction(torch.autograd.Function):
    """The gated norm for autograd."""

    @staticmethod
    def forward(ctx, spec, *tensors):
        ctx.save_for_backward(*saveable(*tensors))
        ctx.spec = spec
        return run(GATED, spec, tensors)[0]

    @staticmethod
    def backward(ctx, dy):
        wants = ctx.needs_input_grad[1:]
        found = run_backward(GATED_BACKWARD, _backward_operator, ctx.spec, (dy, *ctx.saved_tensors), wants)
        return None, *(g if w else None for g, w in zip(found, wants, strict=True))


recorded_gated = recorded(GatedFunction)
"""(spec, input, gate, weight) → what GatedFunction returns."""


def _backward_operator(spec: GatedSpec, tensors: Tensors, wants: Wants) -> Tensors:
    dy, input, gate, weight = tensors
    how = spec.group.eps, spec.norm_first, spec.groups, spec.group.p
    shape = list(spec.normalized_shape)
    return torch.ops.rmsnorm.rms_norm_gated_backward(dy, input, gate, shape, weight, wants, *how)
