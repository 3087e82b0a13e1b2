"""The gated norm as differentiable torch expressions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rmsnorm.torch import onnx
from rmsnorm.torch.gated.spec import GatedSpec
from rmsnorm.torch.norm.composite import compute_dtype, norm, norm_backward


def _logistic(z: Tensor) -> tuple[Tensor, Tensor]:
    """σ(z) and σ(−z) as the kernels have them: e^−|z| is the square of e^(−|z|/2), so that it ends in subnormal numbers
    (torch.sigmoid is 0 from −89 on in float32; the norm may bring such rows back to 1)."""
    root = torch.exp(torch.where(z < 0, z, -z) * 0.5)
    t = root * root
    large = 1 / (1 + t)
    small = t * large
    return torch.where(z < 0, small, large), torch.where(z < 0, large, small)


def _norm(spec: GatedSpec, x: Tensor, weight: Tensor | None) -> Tensor:
    gain = None if weight is None else spec.grouped(weight)
    y, _ = norm(spec.group, spec.grouped(x), None, gain, None)
    return y.reshape(x.shape)


def gated(spec: GatedSpec, input: Tensor, gate: Tensor, weight: Tensor | None) -> tuple[Tensor]:
    """(y,)."""
    x = input.to(compute_dtype(input.dtype))
    z = gate.to(x.dtype)
    s = torch.nn.functional.silu(z) if onnx.exporting() else z * _logistic(z)[0]
    y = _norm(spec, x, weight) * s if spec.norm_first else _norm(spec, x * s, weight)
    return (y.to(input.dtype),)


def gated_backward(
    spec: GatedSpec, dy: Tensor, input: Tensor, gate: Tensor, weight: Tensor | None, wants: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(dx, dgate, dweight), differentiable themselves.

    dx = dh ⊙ silu(z) and dz = dh ⊙ x ⊙ silu'(z), dh being the norm's; with ``norm_before_gate`` the norm receives
    dy ⊙ silu(z), and dz = dy ⊙ rms_norm(x) ⊙ g ⊙ silu'(z).
    """
    x = input.to(compute_dtype(input.dtype))
    dy = dy.to(x.dtype)
    z = gate.to(x.dtype)
    at, rest = _logistic(z)
    s, slope = z * at, at * (1 + z * rest)
    gain = None if weight is None else spec.grouped(weight)
    h, u = (x, dy * s) if spec.norm_first else (x * s, dy)
    needs = (wants[0] or (wants[1] and not spec.norm_first), wants[2], False)
    dh, dweight, _ = norm_backward(spec.group, spec.grouped(u), None, spec.grouped(h), gain, None, needs)
    dx = dz = None
    if dh is not None:
        dh = dh.reshape(x.shape)
        dx = (dh if spec.norm_first else dh * s).to(input.dtype) if wants[0] else None
        dz = dh * x
    if spec.norm_first and wants[1]:
        dz = dy * _norm(spec, x, weight)
    return (
        dx,
        (dz * slope).to(gate.dtype) if wants[1] and dz is not None else None,
        None if dweight is None or weight is None else dweight.reshape(weight.shape),
    )
