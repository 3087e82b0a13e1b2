"""The kernels as torch calls them: the native ones on torch's threads, with tensors as they are; Triton's for CUDA.

Each function returns ``True``, or ``False`` where the kernels do not serve the arguments (see :mod:`rmsnorm.native`).
What the native ones decline is offered to :mod:`~rmsnorm.torch.elsewhere`, from C++, so that a CPU's calls do not pay
for the question.
"""

import ctypes
import glob
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from rmsnorm import native
from rmsnorm.torch import elsewhere
from rmsnorm.torch.elsewhere import captured as captured
from rmsnorm.torch.elsewhere import forward_mode as forward_mode
from rmsnorm.torch.elsewhere import transformed as transformed

_DTYPES = {getattr(torch, name): code for code, name in enumerate(native.DTYPES)}
_CODES = {torch.int8: 0, torch.float8_e4m3fn: 1}  # what rms_norm_quantized writes
_NOT_SERVED = ()


def _torch_parallel_for() -> int | None:
    """The address of libtorch's C function of that name, which torch exports since 2.10."""
    for path in glob.glob(os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.*")):
        function = getattr(ctypes.CDLL(path), "torch_parallel_for", None)  # torch has loaded it already
        if function is not None:
            return ctypes.cast(function, ctypes.c_void_p).value
    return None


def _describe(t: object) -> object:
    if not isinstance(t, Tensor):
        return t
    if t.dtype not in _DTYPES or not t.is_cpu or t.layout is not torch.strided:
        return _NOT_SERVED
    try:
        # The address of a view of freed memory is its offset.
        address = 0 if t.data_ptr() == t.storage_offset() * t.element_size() else t.data_ptr()
        return address, _DTYPES[t.dtype], tuple(t.shape), tuple(t.stride())
    except RuntimeError:  # a transform's wrapper has no memory
        return _NOT_SERVED


def _prepare() -> bool:
    """Hands torch's functions over to C++; returns whether torch describes tensors through DLPack's C exchange API."""
    kernels = native.kernels
    kernels.set_gate(
        Tensor,
        torch.nn.Parameter,
        vars(forward_ad),
        torch._C._functorch.peek_interpreter_stack,
        elsewhere.dispatch_modes,
        torch._C._get_tracing_state,
        torch.is_grad_enabled,
    )
    if _address is not None:
        kernels.set_torch_parallel_for(_address)
    if not elsewhere.why_not:
        kernels.set_elsewhere(elsewhere.serve)
    return hasattr(Tensor, "__dlpack_c_exchange_api__") and kernels.set_exchange(Tensor.__dlpack_c_exchange_api__)


def _bind(name: str) -> Callable[..., bool]:
    """The native kernel itself where torch describes tensors for it (since 2.10, 0.03 µs each)."""
    if native.missing:
        return partial(elsewhere.serve, name)
    kernel = getattr(native.kernels, name)
    if exchanges:
        return kernel
    return lambda *args: kernel(*map(_describe, args))


_address = _torch_parallel_for()
shares_torch_threads = _address is not None
exchanges: bool = False if native.missing else _prepare()
gate: Any = elsewhere.gate if native.missing else native.kernels.gate
FLAGS = 0 if shares_torch_threads else native.OWN_THREADS
FRESH_FLAGS = FLAGS | native.FRESH

rms_norm = _bind("rms_norm")
layer_norm = _bind("layer_norm")
add_rms_norm = _bind("add_rms_norm")
rms_norm_backward = _bind("rms_norm_backward")
layer_norm_backward = _bind("layer_norm_backward")
rms_norm_gated = _bind("rms_norm_gated")
rms_norm_gated_backward = _bind("rms_norm_gated_backward")
_quantized = _bind("rms_norm_quantized")


def rms_norm_quantized(
    x: Tensor, shape: Any, weight: Tensor | None, q: Tensor, scale: Tensor, eps: Any, p: Any, flags: int
) -> bool:
    if x.is_cpu:
        return _quantized(x, shape, weight, q, scale, _CODES[q.dtype], eps, p, flags)
    return elsewhere.serve("rms_norm_quantized", x, shape, weight, q, scale, eps, p, flags)


recurrent_steps: Any = None if native.missing else native.kernels.recurrent_steps


def handle(t: Tensor | None) -> object:
    """``t`` as the recurrent kernels take it, which are bound to their tensors once a layer."""
    return t if exchanges else _describe(t)
