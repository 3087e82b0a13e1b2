"""QK-norm with a rotary embedding as differentiable torch expressions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rmsnorm.spec import NormSpec
from rmsnorm.torch.norm.composite import compute_dtype, norm, norm_backward


def by_position(t: Tensor) -> Tensor:
    """(…, heads, positions, n) as (…, positions, heads, n), where a gain of each head is the norm's; and back."""
    return t.transpose(-3, -2)


def _halves(t: Tensor, width: int) -> tuple[Tensor, Tensor]:
    return t[..., : width // 2], t[..., width // 2 : width]


def _rotated(y: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each product and each sum has the dtype that promotion gives, as in Hugging Face's ``apply_rotary_pos_emb``."""
    width = cos.shape[-1]
    a, b = _halves(y, width)
    (cos_a, cos_b), (sin_a, sin_b) = (_halves(t.unsqueeze(-2), width) for t in (cos, sin))
    first, second = a * cos_a - b * sin_a, b * cos_b + a * sin_b
    return torch.cat((first, second, y[..., width:].to(first.dtype)), -1)


def _rotated_back(dy: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    width = cos.shape[-1]
    a, b = _halves(dy, width)
    (cos_a, cos_b), (sin_a, sin_b) = (_halves(t.unsqueeze(-2).to(dy.dtype), width) for t in (cos, sin))
    return torch.cat((a * cos_a + b * sin_b, b * cos_b - a * sin_a, dy[..., width:]), -1)


def _embedded(spec: NormSpec, x: Tensor, cos: Tensor, sin: Tensor, weight: Tensor | None) -> Tensor:
    x = by_position(x)
    if spec.rounds_first:
        return by_position(_rotated(norm(spec, x, None, weight, None)[0], cos, sin))
    dtype = compute_dtype(x.dtype)
    y, _ = norm(spec, x.to(dtype), None, weight, None)
    return by_position(_rotated(y, cos.to(dtype), sin.to(dtype)).to(x.dtype))


def rotary(
    spec: NormSpec,
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(query, key)."""
    return _embedded(spec, q, cos, sin, q_weight), _embedded(spec, k, cos, sin, k_weight)


def rotary_backward(
    spec: NormSpec,
    dy_q: Tensor,
    dy_k: Tensor,
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    wants: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """(dq, dk, dq_weight, dk_weight), differentiable themselves: the norm's gradients at dy, rotated back."""
    of_q, of_k, of_q_weight, of_k_weight = wants

    def gradients(dy, x, weight, of_x, of_weight):
        u = _rotated_back(by_position(dy).to(compute_dtype(x.dtype)), cos, sin)
        dx, dweight, _ = norm_backward(spec, u, None, by_position(x), weight, None, (of_x, of_weight, False))
        return None if dx is None else by_position(dx), dweight

    dq, dq_weight = gradients(dy_q, q, q_weight, of_q, of_q_weight)
    dk, dk_weight = gradients(dy_k, k, k_weight, of_k, of_k_weight)
    return dq, dk, dq_weight, dk_weight
