"""The kernels as :mod:`rmsnorm.torch` calls them, under the names and with the arguments of the C++ kernels.

Each returns ``True`` when the work is done, and ``False`` where the kernels decline the arguments.
"""

from types import ModuleType

import torch

from rmsnorm import native
from rmsnorm.torch.triton import choices, norms, plans
from rmsnorm.torch.triton.gated import gated, gated_backward
from rmsnorm.torch.triton.norms import norm, norm_backward
from rmsnorm.torch.triton.quantized import quantized

__all__ = [
    "check",
    "connect",
    "gated",
    "gated_backward",
    "norm",
    "norm_backward",
    "quantized",
    "rotary",
    "rotary_backward",
]


def rotary(*_: object) -> bool:
    """There is no kernel: torch's operations serve CUDA tensors."""
    return False


rotary_backward = rotary


def check(device: torch.device | None) -> None:
    """Norms one row on a device (None: the current one), and raises what keeps a kernel from being launched there."""
    with torch.cuda.device(device):
        x = torch.zeros(1, 64, device="cuda")
        tensors = x, None, None, None, torch.empty_like(x), None
        addresses = [0 if t is None else t.data_ptr() for t in tensors]
        plan = norms.plan_forward(False, tensors, (64,), None, 1.0, native.FRESH, choices.VECTOR)
        if plan is None:
            raise RuntimeError("the kernels decline a row of 64 numbers")
        plan(tensors, addresses)


def connect(nodes: ModuleType) -> None:
    """The C++ calls of nodes.cpp serve CUDA tensors by these kernels from now on: 41 µs instead of 54 for forward and
    backward, without the launches."""
    nodes.serve("cuda", norm, norm_backward)
    plans.describe = nodes.describe
