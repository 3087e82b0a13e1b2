"""Tensors that the C++ kernels do not serve: Triton's kernels for CUDA, and the gate where no C++ was built.

Triton is imported at the first call with a CUDA tensor. ``RMSNORM_COMPILE`` says what ``torch.compile`` sees of a call:
``operator`` (the default), the kernels as one operator of ``torch.library``; or ``decompose``, the torch expression,
which Inductor fuses with what surrounds it.
"""

import functools
import importlib.util
import os
import warnings
from importlib import metadata
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from rmsnorm import native

TRITON = (3, 6)  # torch 2.10's: the first whose launcher takes what triton/launch.py hands it
_functorch_level = torch._C._functorch.peek_interpreter_stack
_dispatch_modes, _included = torch._C._len_torch_dispatch_stack, torch._C._dispatch_tls_is_dispatch_key_included
_PRE_DISPATCH, _VMAP = map(torch._C._dispatch_key_parse, ("PreDispatch", "VmapMode"))
_ORDINARY = (Tensor, torch.nn.Parameter)


def _why_no_triton() -> str | None:
    if torch.version.cuda is None and torch.version.hip is None:
        return "this torch is built without CUDA or ROCm"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    if not hasattr(Tensor, "__dlpack_c_exchange_api__"):
        return f"it needs torch >= 2.10, this is {torch.__version__}"
    try:
        version = metadata.version("triton")
    except metadata.PackageNotFoundError:  # torch's builds for ROCm call it otherwise
        return None
    if tuple(int(part) for part in version.split("+")[0].split(".")[:2]) < TRITON:
        return f"it needs Triton >= {TRITON[0]}.{TRITON[1]}, this is {version}"
    return None


why_not: str | None = _why_no_triton()
"""Why CUDA tensors have no kernels; None where they have, as far as was tried: :func:`tried`."""


@functools.cache
def _triton() -> ModuleType | None:
    global why_not
    try:
        from rmsnorm.torch.triton import functions

        functions.check()
    except Exception as error:  # Triton compiles C against the driver: no compiler, no headers, another driver
        why_not = f"Triton does not run here: {type(error).__name__}: {error}"
        warnings.warn(f"rmsnorm: CUDA tensors take torch's operations, slower: {why_not}", stacklevel=5)
        return None
    return functions


def tried() -> str | None:
    """``why_not`` once a kernel was compiled and launched, where there is a device."""
    if why_not is None and torch.cuda.is_available():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _triton()
    return why_not


def serve(name: str, *args: Any) -> bool:
    """The kernel function ``name`` for tensors of another device; ``False`` where nothing serves them."""
    if why_not or not getattr(args[0], "is_cuda", False):
        return False
    function = getattr(_triton(), name, None)
    return function is not None and function(*args)


def dispatch_modes() -> int:
    """How many modes want to see operations; those of the PreDispatch key are in no stack (make_fx, export)."""
    return _dispatch_modes() or _included(_PRE_DISPATCH)


def forward_mode() -> bool:
    """Whether a level of dual numbers has been entered."""
    return forward_ad._current_level >= 0


def transformed() -> bool:
    """Whether forward mode, a transform of torch.func or the vmap of is_grads_batched is active."""
    return forward_mode() or _functorch_level() is not None or _included(_VMAP)


# These are entered while Dynamo traces, and its guards compare them at every call: constants of a graph. This is the
# mark of torch.compiler.assume_constant_result.
forward_mode._dynamo_marked_constant = True  # type: ignore[attr-defined]
transformed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def gate(input: Tensor, weight: Tensor | None, bias: Tensor | None) -> int:
    """What the C++ gate (native/gate.h) answers, where there is none: only CUDA tensors have kernels then."""
    given = [t for t in (input, weight, bias) if t is not None]
    if input is None or any(type(t) not in _ORDINARY or t.is_neg() for t in given):
        return native.COMPOSITE
    if why_not or not input.is_cuda or transformed():
        return native.COMPOSITE
    if dispatch_modes() or torch._C._get_tracing_state() is not None:
        return native.COMPOSITE
    return native.AUTOGRAD if torch.is_grad_enabled() and any(t.requires_grad for t in given) else native.KERNEL


def _decomposed() -> bool:
    wanted = os.environ.get("RMSNORM_COMPILE") or "operator"
    if wanted not in ("operator", "decompose"):
        raise ImportError(f"RMSNORM_COMPILE must be operator or decompose, got {wanted!r}; unset it for operator")
    return wanted == "decompose"


_AS_OPERATOR = {"cpu": not _decomposed() and not native.missing, "cuda": not _decomposed() and not why_not}


def captured(input: Tensor) -> bool:
    """Whether a compiled graph holds the operator (else the expression) for tensors of this device."""
    if transformed():
        return False
    return _AS_OPERATOR["cpu"] if input.is_cpu else input.is_cuda and _AS_OPERATOR["cuda"]
