"""The quantised norm in torch's own operations."""

import torch
from torch import Tensor

from rmsnorm.torch import checks
from rmsnorm.torch.norm.composite import compute_dtype, norm
from rmsnorm.torch.quantized.spec import QuantizedSpec


def quantized(
    spec: QuantizedSpec, input: Tensor, residual: Tensor | None, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(q, scale, sum): of the input, or of the sum of input and residual, rounded to the residual's dtype."""
    total = None if residual is None else (input + residual).to(residual.dtype)
    x = input if total is None else total
    y, _ = norm(spec.norm, x.to(compute_dtype(x.dtype)), None, weight, None)
    # Dynamo does not say it of the argument of torch.func.grad.
    checks.check_no_gradient("rms_norm_quantized" if total is None else "add_rms_norm_quantized", y)
    dims = len(spec.normalized_shape)
    one_per_row = *y.shape[:-dims], *(1,) * dims
    largest = y.abs().flatten(-dims).amax(-1).reshape(one_per_row) if y.numel() else y.new_zeros(one_per_row)
    scale = torch.where(largest.isfinite(), largest, torch.nan).div(spec.largest).to(torch.float32)
    codes = torch.where((scale > 0) & scale.isfinite(), y / scale, 0.0).clamp(-spec.largest, spec.largest)
    codes = codes.round() if spec.dtype == torch.int8 else codes.float()
    return codes.to(spec.dtype, memory_format=torch.contiguous_format), scale, total
