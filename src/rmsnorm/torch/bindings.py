"""The kernels as torch calls them: native ones on torch's threads, with tensors as they are; Triton's for CUDA.

Each function returns ``True``, or ``False`` where the kernels do not serve the arguments (see :mod:`rmsnorm.native`).
"""

import ctypes
import glob
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rmsnorm import native
from rmsnorm.torch import dispatch, node_files

_DTYPES = {getattr(torch, name): code for code, name in enumerate(native.DTYPES)}
_NOT_SERVED = ()

Kernel = Callable[..., bool]


class Kernels(NamedTuple):
    """The kernels of one device. rmsnorm/torch/triton/functions.py has functions of the same names and arguments.

    Each takes tensors, results to write, and then what it is asked to do. What is not given or not wanted is None.
    """

    norm: Kernel
    """(input, residual, weight, bias, y, sum, kind, shape, eps, p, flags)"""
    norm_backward: Kernel
    """(dy, plus, input, weight, dx, dweight, dbias, kind, shape, eps, p, flags)"""
    gated: Kernel
    """(input, gate, weight, y, shape, eps, p, groups, norm_first, flags)"""
    gated_backward: Kernel
    """(dy, input, gate, weight, dx, dgate, dweight, shape, eps, p, groups, norm_first, flags)"""
    quantized: Kernel
    """(input, residual, weight, q, scale, sum, shape, eps, p, flags)"""
    rotary: Kernel
    """(q, k, cos, sin, q_weight, k_weight, y_q, y_k, shape, eps, p, flags)"""
    rotary_backward: Kernel
    """(dy, x, cos, sin, weight, dx, dweight, shape, eps, p, flags), x the query or the key"""


# ---- the native kernels ----


def _torch_parallel_for() -> int | None:
    """The address of libtorch's C function of that name, which torch exports since 2.10."""
    for path in glob.glob(os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.*")):
        function = getattr(ctypes.CDLL(path), "torch_parallel_for", None)  # torch has loaded it already
        if function is not None:
            return ctypes.cast(function, ctypes.c_void_p).value
    return None


def _connect_exchange() -> bool:
    """Whether torch describes tensors to the kernels through DLPack's C exchange API (since 2.10, 0.03 µs each)."""
    exchange = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    return exchange is not None and native.kernels.set_exchange(exchange)


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


def _native(name: str) -> Kernel:
    """The native kernel, which reads tensors itself where torch exchanges them."""
    kernel: Kernel = getattr(native.kernels, name)
    return kernel if exchanges else lambda *args: kernel(*map(_describe, args))


def _declined(*_: Any) -> bool:
    return False


_parallel_for = _torch_parallel_for()
shares_torch_threads = _parallel_for is not None
if shares_torch_threads and not native.missing:
    native.kernels.set_torch_parallel_for(_parallel_for)
exchanges: bool = not native.missing and _connect_exchange()
FLAGS = 0 if shares_torch_threads else native.OWN_THREADS
FRESH_FLAGS = FLAGS | native.FRESH

_NONE = Kernels(*[_declined] * len(Kernels._fields))
FAKE = Kernels(*[lambda *_: True] * len(Kernels._fields))
"""They write nothing, and serve everything: what is allocated for them has the right shapes and dtypes."""
_CPU = _NONE if native.missing else Kernels(*map(_native, Kernels._fields))


def kernels_of(t: Tensor) -> Any:
    """The :class:`Kernels` of a tensor's device, or a module of such functions."""
    if t.is_cpu:
        return _CPU
    if t.is_cuda and not dispatch.why_no_triton:
        return _of_cuda(t.device)
    return _NONE


def _of_cuda(device: torch.device) -> Any:
    kernels = dispatch.triton(device)
    if kernels is None:
        return _NONE
    while _unconnected:
        kernels.connect(_unconnected.pop())
    return kernels


recurrent_steps: Any = None if native.missing else native.kernels.recurrent_steps


def handle(t: Tensor | None) -> object:
    """``t`` as the recurrent kernels take it, which are bound to their tensors once a layer."""
    return t if exchanges else _describe(t)


# ---- the C++ calls and autograd nodes of nodes.cpp ----

_unconnected: list[ModuleType] = []
"""The module, from when it is loaded to the first call with a CUDA tensor."""


def load_nodes(gradients: Callable[..., Any]) -> tuple[ModuleType | None, str | None]:
    """The module, or why there is none; ``gradients``: what a node calls in a backward pass that is not ordinary.

    The build makes it where it finds torch, and ``rmsnorm build-nodes`` for another torch. Without it the calls go
    through Python, with the same results.
    """
    if native.missing:
        return None, native.missing
    try:
        module = node_files.find_nodes()
    except ImportError as error:
        return None, f"their module for torch {torch.__version__} cannot be loaded ({error}); run `rmsnorm build-nodes`"
    if module is None:
        return None, f"there are none for torch {torch.__version__}; `rmsnorm build-nodes` compiles them"
    if not module.connect(native.kernels.c_api, gradients, FLAGS):
        return None, "of another version of rmsnorm than its kernels; install it again"
    _unconnected.append(module)
    return module, None


# ---- the operators of ops.cpp ----


def load_operators() -> str | None:
    """Loads the library that defines the CPU's operators in C++, and hands it the kernels; or says why not."""
    if native.missing:
        return native.missing
    library = node_files.find_operators()
    if library is None:
        return f"there are none for torch {torch.__version__}; `rmsnorm build-nodes` compiles them"
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    try:
        connect = ctypes.CDLL(library).rmsnorm_connect
    except OSError as error:
        return f"{library} cannot be loaded ({error}); run `rmsnorm build-nodes`"
    connect.restype, connect.argtypes = ctypes.c_bool, (ctypes.c_void_p, ctypes.c_int)
    if not connect(pointer(native.kernels.c_api, b"rmsnorm.native.c_api"), FLAGS):
        raise ImportError(f"{native.OLDER}: {library} is of another version of the interface")
    return None
