"""The product of each step's rows with a matrix that stays the same over all steps.

Larger than the second cache level, a matrix is packed once, into the layout that the framework's matrix product else
makes of it anew at each step (128 rows, 1024 → 4096: 11.2 ms a step as it stands, 7.3 packed). Smaller ones are best
contiguous as they are multiplied from the right (16 rows, 256 → 1024: 49 µs, 86 from a transposed view).
"""

from collections.abc import Callable

import torch
from torch import Tensor

PACKED_BYTES = 8 << 20
PACKED_ROWS, PACKED_STEPS = 16, 8
"""Packing takes about as long as one product with 64 rows: it must serve some, and a single row gains nothing."""

_packs = torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")


def right_product(weight: Tensor, rows: int, steps: int) -> Callable[[Tensor, Tensor], object]:
    """(x, out) ↦ out = x weightᵀ for x of up to ``rows`` rows; weight: (outputs, inputs)."""
    large = weight.numel() * weight.element_size() >= PACKED_BYTES
    if _packs and large and rows >= PACKED_ROWS and steps >= PACKED_STEPS and weight.dtype == torch.float32:
        weight = weight.contiguous()
        packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
        return lambda x, out: out.copy_(torch.ops.mkl._mkl_linear(x, packed, weight, None, rows))
    turned = weight.t().contiguous()
    return lambda x, out: torch.mm(x, turned, out=out)
