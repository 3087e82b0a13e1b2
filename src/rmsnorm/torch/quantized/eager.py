"""The quantised norm on kernels."""

from functools import lru_cache

import torch
from torch import Tensor

from rmsnorm.torch import checks
from rmsnorm.torch.bindings import FLAGS, Kernels
from rmsnorm.torch.operation import Operation, Tensors
from rmsnorm.torch.quantized import composite
from rmsnorm.torch.quantized.spec import QuantizedSpec


@lru_cache(maxsize=4096)
def arguments(spec: QuantizedSpec) -> tuple:
    """What the kernel is told after tensors and results."""
    return spec.normalized_shape, spec.norm.eps, spec.norm.p, FLAGS


def _attempt(kernels: Kernels, spec: QuantizedSpec, tensors: Tensors, _: None) -> Tensors | None:
    input, dims = tensors[0], len(spec.normalized_shape)
    one_per_row = *input.shape[: input.dim() - dims], *(1,) * dims
    q = torch.empty(input.shape, dtype=spec.dtype, device=input.device)
    scale = torch.empty(one_per_row, dtype=torch.float32, device=input.device)
    return (q, scale) if kernels.quantized(*tensors, q, scale, *arguments(spec)) else None


def _check(spec: QuantizedSpec, input: Tensor, weight: Tensor | None) -> None:
    checks.check_tensors(spec.normalized_shape, input, weight, None)


QUANTIZED = Operation(
    names=("input", "weight"),
    rows=1,
    like=(None, None),
    attempt=_attempt,
    check=_check,
    composite=composite.quantized,
)
"""→ (q, scale)."""
