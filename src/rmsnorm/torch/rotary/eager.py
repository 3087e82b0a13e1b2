"""QK-norm with a rotary embedding on kernels, and its autograd node."""

from typing import Any

import torch
from torch import Tensor

from rmsnorm.spec import MismatchError, NormSpec
from rmsnorm.torch import checks
from rmsnorm.torch.bindings import Kernels
from rmsnorm.torch.norm.eager import arguments
from rmsnorm.torch.operation import Operation, Tensors, Wants, recorded, run, run_backward, saveable
from rmsnorm.torch.rotary import composite


def head_dim(q: Any) -> int:
    """How many elements the norm is over, before anything else is known of ``q``."""
    if not isinstance(q, Tensor):
        raise TypeError(f"q must be a torch.Tensor, got {type(q).__name__}")
    if not q.dim():
        raise MismatchError("q must have the shape (…, heads, positions, head_dim), got ()")
    return q.shape[-1]


def _result(spec: NormSpec, x: Tensor, cos: Tensor, sin: Tensor, weight: Tensor | None) -> Tensor:
    if not spec.rounds_first:
        return torch.empty_like(x)
    dtype = x.dtype if weight is None else torch.promote_types(x.dtype, weight.dtype)
    return torch.empty_like(x, dtype=torch.promote_types(torch.promote_types(dtype, cos.dtype), sin.dtype))


def _attempt(kernels: Kernels, spec: NormSpec, tensors: Tensors, _: None) -> Tensors | None:
    q, k, cos, sin, q_weight, k_weight = tensors
    y_q, y_k = _result(spec, q, cos, sin, q_weight), _result(spec, k, cos, sin, k_weight)
    _, *how = arguments(spec)
    return (y_q, y_k) if kernels.rotary(q, k, cos, sin, q_weight, k_weight, y_q, y_k, *how) else None


def _check(
    spec: NormSpec,
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
) -> None:
    checks.check_rotary(q, k, cos, sin, q_weight, k_weight)


def _operator(spec: NormSpec, *tensors: Tensor | None) -> Tensors:
    return torch.ops.rmsnorm.rms_norm_rotary(*tensors, spec.eps, spec.zero_centered, spec.casting)


ROTARY = Operation(
    names=("q", "k", "cos", "sin", "q_weight", "k_weight"),
    rows=4,
    like=(0, 1),
    attempt=_attempt,
    check=_check,
    composite=composite.rotary,
    operator=_operator,
)
"""→ (query, key)."""


def _attempt_backward(kernels: Kernels, spec: NormSpec, tensors: Tensors, wants: Wants) -> Tensors | None:
    dy_q, dy_k, q, k, cos, sin, q_weight, k_weight = tensors
    of_q, of_k, of_q_weight, of_k_weight = wants
    _, *how = arguments(spec)
    served = True

    def gradients(dy, x, weight, of_x, of_weight):
        nonlocal served
        if not (of_x or of_weight):
            return None, None
        dx, dweight = torch.empty_like(x), torch.empty_like(weight) if of_weight and weight is not None else None
        served = served and kernels.rotary_backward(dy, x, cos, sin, weight, dx, dweight, *how)
        return dx, dweight

    dq, dq_weight = gradients(dy_q, q, q_weight, of_q, of_q_weight)
    dk, dk_weight = gradients(dy_k, k, k_weight, of_k, of_k_weight)
    return (dq, dk, dq_weight, dk_weight) if served else None


def _check_backward(spec: NormSpec, dy_q: Tensor, dy_k: Tensor, q: Tensor, k: Tensor, *others: Any) -> None:
    _check(spec, q, k, *others)
    checks.check_alike("dy_q", dy_q, q, "q")
    checks.check_alike("dy_k", dy_k, k, "k")


ROTARY_BACKWARD = Operation(
    names=("dy_q", "dy_k", *ROTARY.names),
    rows=6,
    like=(2, 3, 6, 7),
    attempt=_attempt_backward,
    check=_check_backward,
    composite=composite.rotary_backward,
)
"""→ (dq, dk, dq_weight, dk_weight)."""


class RotaryFunction(torch.autograd.Function):
    """QK-norm with a rotary embedding for autograd; cos and sin are constants."""

    @staticmethod
    def forward(ctx, spec, *tensors):
        ctx.save_for_backward(*saveable(*tensors))
        ctx.spec = spec
        ctx.set_materialize_grads(False)
        return run(ROTARY, spec, tensors)

    @staticmethod
    def backward(ctx, *dy):
        _, of_q, of_k, _, _, of_q_weight, of_k_weight = ctx.needs_input_grad
        saved = ctx.saved_tensors
        used_q, used_k = (d is not None for d in dy)
        wants = of_q and used_q, of_k and used_k, of_q_weight and used_q, of_k_weight and used_k
        tensors = *(torch.zeros_like(x) if d is None else d for d, x in zip(dy, saved, strict=False)), *saved
        found = run_backward(ROTARY_BACKWARD, _backward_operator, ctx.spec, tensors, wants)
        dq, dk, dq_weight, dk_weight = (g if w else None for g, w in zip(found, wants, strict=True))
        return None, dq, dk, None, None, dq_weight, dk_weight


recorded_rotary = recorded(RotaryFunction)
"""(spec, q, k, cos, sin, q_weight, k_weight) → what RotaryFunction returns."""


def _backward_operator(spec: NormSpec, tensors: Tensors, wants: Wants) -> Tensors:
    how = spec.eps, spec.zero_centered, spec.casting
    return torch.ops.rmsnorm.rms_norm_rotary_backward(*tensors, wants, *how)
