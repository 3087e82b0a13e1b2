"""The operations as lines of torch: what one writes without a kernel, what gets compiled, and a float64 oracle."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from rmsnorm.spec import partial_count
from rmsnorm_lab.bench.cases import EPS, Case


def formula(case: Case, dtype: torch.dtype = torch.float32) -> Callable[..., Any]:
    """The operation on ``case.operands``, computed in ``dtype`` and rounded to the input's."""
    k = partial_count(case.n, case.p)

    def normalized(a: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return a * torch.rsqrt(a[..., :k].square().mean(-1, keepdim=True) + EPS) * weight.to(dtype)

    def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return normalized(x.to(dtype), weight).to(x.dtype)

    def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        a = x.to(dtype)
        centred = a - a.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        return (centred * torch.rsqrt(variance + EPS) * weight.to(dtype) + bias.to(dtype)).to(x.dtype)

    def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> Any:
        h = x + residual
        return rms_norm(h, weight), h

    def add_rms_norm_inplace(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> Any:
        residual.add_(x)
        return x.copy_(rms_norm(residual, weight)), residual

    def rms_norm_gated(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return normalized(x.to(dtype) * F.silu(gate.to(dtype)), weight).to(x.dtype)

    def rms_norm_quantized(x: torch.Tensor, weight: torch.Tensor) -> Any:
        y = normalized(x.to(dtype), weight)
        scale = y.abs().amax(-1, keepdim=True) / 127
        return (y / scale).round().to(torch.int8), scale

    def add_rms_norm_quantized(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> Any:
        h = x + residual
        return *rms_norm_quantized(h, weight), h

    choices: dict[str, Callable[..., Any]] = {
        "rms_norm": rms_norm,
        "layer_norm": layer_norm,
        "add_rms_norm": add_rms_norm,
        "add_rms_norm_inplace": add_rms_norm_inplace,
        "rms_norm_heads": rms_norm,  # the gain's heads broadcast
        "rms_norm_gated": rms_norm_gated,
        "rms_norm_quantized": rms_norm_quantized,
        "add_rms_norm_quantized": add_rms_norm_quantized,
    }
    return choices[case.op]
