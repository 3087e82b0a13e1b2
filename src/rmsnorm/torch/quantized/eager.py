"""The quantised norm on kernels."""

from functools import lru_cache

import torch
from torch import Tensor

from rmsnorm.torch import checks
from rmsnorm.torch.bindings import FLAGS, Kernels
from rmsnorm.torch.operation import Operation, Tensors, laid_out, run
from rmsnorm.torch.quantized import composite
from rmsnorm.torch.quantized.spec import QuantizedSpec


@lru_cache(maxsize=4096)
def arguments(spec: QuantizedSpec) -> tuple:
    """What the kernel is told after tensors and results."""
    return spec.normalized_shape, spec.norm.eps, spec.norm.p, FLAGS


def _attempt(kernels: Kernels, spec: QuantizedSpec, tensors: Tensors, _: None) -> Tensors | None:
    input, residual, weight = tensors
    dims = len(spec.normalized_shape)
    one_per_row = *input.shape[: input.dim() - dims], *(1,) * dims
    # torch.empty with a device takes 2.4 µs, these 1.1 and 1.6.
    q = torch.empty_like(input, dtype=spec.dtype, memory_format=torch.contiguous_format)
    scale = input.new_empty(one_per_row, dtype=torch.float32)
    total = None if residual is None else torch.empty_like(residual)
    served = kernels.quantized(input, residual, weight, q, scale, total, *arguments(spec))
    return (q, scale, total) if served else None


def _check(spec: QuantizedSpec, input: Tensor, residual: Tensor | None, weight: Tensor | None) -> None:
    checks.check_tensors(spec.normalized_shape, input, weight, None)
    if residual is not None:
        checks.check_alike("residual", residual, input)


QUANTIZED = Operation(
    names=("input", "residual", "weight"),
    rows=2,
    like=(None, None, 1),
    attempt=_attempt,
    check=_check,
    composite=composite.quantized,
)
"""→ (q, scale, the sum of input and residual)."""


def forward(spec: QuantizedSpec, tensors: Tensors) -> Tensors:
    """(q, scale, sum) of (input, residual, weight)."""
    input, residual, weight = tensors
    # The kernel adds tensors of one dtype; Triton's does not add.
    if residual is None or (residual.dtype == input.dtype and not input.is_cuda):
        return run(QUANTIZED, spec, tensors)
    _check(spec, input, residual, weight)
    total = laid_out((input + residual).to(residual.dtype), residual)
    q, scale, _ = run(QUANTIZED, spec, (total, None, weight))
    return q, scale, total
