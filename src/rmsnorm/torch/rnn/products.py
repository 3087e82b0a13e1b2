"""The product of each step's rows with a matrix that is the same at all steps.

MKL's product packs the matrix into a layout of its own first. If torch offers the packed product, the matrix is packed
once instead of at each step. Milliseconds a step on two threads, from a transposed view and packed: 128 rows, 1024 →
4096: 15.3 and 8.0; 64 rows, 512 → 1536: 0.58 and 0.31. Packing 3 MB takes 0.13 ms.
"""

from collections.abc import Callable

import torch
from torch import Tensor

COPIED_BYTES = 8 << 20
"""A matrix that is not contiguous is packed from this size on. It must be copied first, at 0.8 ms for 3 MB, which a
smaller one does not repay (64 rows, 1536 → 512: 0.36 ms a step, 0.32 packed)."""

_packs = torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")


def right_product(weight: Tensor, rows: int, steps: int) -> Callable[[Tensor, Tensor], object]:
    """(x, out) ↦ out = x weightᵀ for x of up to ``rows`` rows; weight: (outputs, inputs)."""
    large = weight.numel() * weight.element_size() >= COPIED_BYTES
    worth = rows > 1 and steps > 3 and (weight.is_contiguous() or large)
    if not (_packs and worth and weight.dtype == torch.float32):
        return lambda x, out: torch.mm(x, weight.t(), out=out)
    weight = weight.contiguous()
    packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
    return lambda x, out: out.copy_(torch.ops.mkl._mkl_linear(x, packed, weight, None, rows))
