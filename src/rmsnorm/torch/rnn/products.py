"""The products of a layer: all rows with one matrix, and the rows of each step with a matrix that stays the same.

Small layers take the latter in native code (AT_ONCE); what follows is about the others.

On AMD's processors MKL is slow, and oneDNN, which torch has too, is not. Milliseconds of one thread of
an AMD EPYC (Zen 4), MKL's product and oneDNN's: 1920 rows, 512 → 2048: 44 and 39; a step of 64 rows: 1.8 and 1.4; a
step of 4 rows: 0.21 and 0.10; a step of 128 rows, 1024 → 4096: 14.8 and 10.6.

Both pack the matrix into a layout of their own first. If torch offers the packed product, the matrix is packed once
instead of at each step. Milliseconds a step on two threads of an Intel Xeon, MKL, from a transposed view and packed:
128 rows, 1024 → 4096: 15.3 and 8.0; 64 rows, 512 → 1536: 0.58 and 0.31. Packing 3 MB takes 0.13 ms.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

COPIED_BYTES = 8 << 20
"""MKL: a matrix that is not contiguous is packed from this size on. It must be copied first, at 0.8 ms for 3 MB, which
a smaller one does not repay (64 rows, 1536 → 512: 0.36 ms a step, 0.32 packed)."""
FEWEST = 1 << 18
"""oneDNN: the elements from which on it is faster (256 → 1024, 8 rows: 80 and 67 µs; 192 → 768, 16 rows: 70 and 72)."""
REPAID = 16
"""oneDNN: the steps that repay the packing of a matrix that is not contiguous (512 → 2048: 2.4 ms)."""


def _is_amd() -> bool:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return "AuthenticAMD" in file.read(100)
    except OSError:
        return False


_mkl = torch.backends.mkl.is_available() and not _is_amd() and hasattr(torch.ops.mkl, "_mkl_linear")
_onednn = torch.backends.mkl.is_available() and _is_amd() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


AT_ONCE = 1 << 18
"""The most elements of a matrix whose steps are one native call, with products of its own: no library's calls and
packing delay them, and threads meet once a layer. In float32 training steps take 0.59 to 1.03 of the time
(tools/steps_at_once.py)."""
AT_ONCE_BFLOAT16 = 1 << 22
"""The same in bfloat16, of the matrix times a step's rows. Processors multiply bfloat16 in pairs, ours are float32's
products. (LSTM, 256 units, one thread, training steps, at once over one by one: 16 rows 0.92, 32 1.06, 128 1.19.)"""
FEWEST_AT_ONCE = 4
"""Steps that repay the packing."""


class StepProduct(NamedTuple):
    """x weightᵀ of the rows x of a step: functions of (x, out)."""

    write: Callable[[Tensor, Tensor], object]
    """out = x weightᵀ"""
    add: Callable[[Tensor, Tensor], object]
    """out += x weightᵀ"""


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weightᵀ + bias for many rows x; weight: (outputs, inputs)."""
    if _onednn and x.dtype == torch.float32 and weight.numel() >= FEWEST and x.shape[0] > 1:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return torch.mm(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())


def in_one_call(weight: Tensor, rows: int, steps: int) -> bool:
    """Whether a layer with this matrix of the state takes all its steps in one native call; ``rows``: of a step."""
    if weight.dtype == torch.bfloat16 and weight.numel() * rows > AT_ONCE_BFLOAT16:
        return False
    return steps >= FEWEST_AT_ONCE and weight.numel() <= AT_ONCE


def step_product(weight: Tensor, rows: int, steps: int) -> StepProduct:
    """The product with a matrix (outputs, inputs) at each of the steps, of up to ``rows`` rows."""
    packed = _packed(weight, rows, steps) if weight.dtype == torch.float32 and rows > 1 else None
    if packed is None:
        right = weight.t()
        return StepProduct(lambda x, out: torch.mm(x, right, out=out), lambda x, out: out.addmm_(x, right))
    return StepProduct(lambda x, out: out.copy_(packed(x)), lambda x, out: out.add_(packed(x)))


def _packed(weight: Tensor, rows: int, steps: int) -> Callable[[Tensor], Tensor] | None:
    """x ↦ x weightᵀ with a matrix that is packed now; None where that does not pay."""
    large = weight.numel() * weight.element_size() >= COPIED_BYTES
    if _mkl and steps > 3 and (weight.is_contiguous() or large):
        weight = weight.contiguous()
        packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
        return lambda x: torch.ops.mkl._mkl_linear(x, packed, weight, None, rows)
    if _onednn and weight.numel() >= FEWEST and steps > (3 if weight.is_contiguous() else REPAID):
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    return None
