"""The native kernels as torch calls them: on torch's threads, with tensors as they are.

Each function returns ``True``, or ``False`` where the kernels do not serve the arguments (see :mod:`rmsnorm.native`).
"""

import ctypes
import glob
import os
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from rmsnorm import native

_DTYPES = {getattr(torch, name): code for code, name in enumerate(native.DTYPES)}
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
        return t.data_ptr(), _DTYPES[t.dtype], tuple(t.shape), tuple(t.stride())
    except RuntimeError:  # a transform's wrapper has no memory
        return _NOT_SERVED


def _bind(kernel: Callable[..., bool]) -> Callable[..., bool]:
    """``kernel`` itself where torch describes tensors through DLPack's C exchange API (since 2.10, 0.03 µs each)."""
    if exchanges:
        return kernel
    return lambda *args: kernel(*map(_describe, args))


native.kernels.set_gate(
    Tensor,
    torch.nn.Parameter,
    vars(forward_ad),
    torch._C._functorch.peek_interpreter_stack,
    torch._C._len_torch_dispatch_stack,
    torch._C._get_tracing_state,
    torch.is_grad_enabled,
)
gate = native.kernels.gate

_address = _torch_parallel_for()
if _address is not None:
    native.kernels.set_torch_parallel_for(_address)
shares_torch_threads = _address is not None
FLAGS = 0 if shares_torch_threads else native.OWN_THREADS
FRESH_FLAGS = FLAGS | native.FRESH

exchanges: bool = hasattr(Tensor, "__dlpack_c_exchange_api__") and native.kernels.set_exchange(
    Tensor.__dlpack_c_exchange_api__
)
rms_norm = _bind(native.kernels.rms_norm)
layer_norm = _bind(native.kernels.layer_norm)
add_rms_norm = _bind(native.kernels.add_rms_norm)
rms_norm_backward = _bind(native.kernels.rms_norm_backward)
layer_norm_backward = _bind(native.kernels.layer_norm_backward)
rms_norm_gated = _bind(native.kernels.rms_norm_gated)
rms_norm_gated_backward = _bind(native.kernels.rms_norm_gated_backward)
rms_norm_quantized = _bind(native.kernels.rms_norm_quantized)

recurrent_steps = native.kernels.recurrent_steps


def handle(t: Tensor | None) -> object:
    """``t`` as the recurrent kernels take it, which are bound to their tensors once a layer."""
    return t if exchanges else _describe(t)
