"""The quantised norm in torch's own operations."""

import torch
from torch import Tensor

from rmsnorm.torch import checks
from rmsnorm.torch.norm.composite import compute_dtype, norm
from rmsnorm.torch.quantized.spec import QuantizedSpec


def quantized(spec: QuantizedSpec, input: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """(q, scale)."""
    y, _ = norm(spec.norm, input.to(compute_dtype(input.dtype)), None, weight, None)
    checks.check_no_gradient("rms_norm_quantized", y)  # Dynamo does not say it of the argument of torch.func.grad
    dims = len(spec.normalized_shape)
    one_per_row = *y.shape[:-dims], *(1,) * dims
    largest = y.abs().flatten(-dims).amax(-1).reshape(one_per_row) if y.numel() else y.new_zeros(one_per_row)
    scale = torch.where(largest.isfinite(), largest, torch.nan).div(spec.largest).to(torch.float32)
    codes = torch.where((scale > 0) & scale.isfinite(), y / scale, 0.0).clamp(-spec.largest, spec.largest)
    codes = codes.round() if spec.dtype == torch.int8 else codes.float()
    return codes.to(spec.dtype, memory_format=torch.contiguous_format), scale
