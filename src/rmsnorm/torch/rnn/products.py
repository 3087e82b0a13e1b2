"""The product of each step's rows with a matrix that stays the same over all steps.

Where torch offers MKL's packed product, the matrix is brought once into the layout that a product else makes of it anew
at each step (two threads: 128 rows, 1024 → 4096: 15.3 ms a step from a transposed view, 8.0 packed; 64 rows, 512 →
1536: 0.58 and 0.31). Packing 3 MB takes 0.13 ms.
"""

from collections.abc import Callable

import torch
from torch import Tensor

COPIED_BYTES = 8 << 20
"""A matrix that is not contiguous must be copied first, at 0.8 ms for 3 MB; as it stands it is the better operand up to
this size (64 rows, 1536 → 512: 0.36 ms a step, 0.32 packed)."""

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
