"""Which way a call goes: the ways, which device has which kernels, and why another has none.

Before it asks :func:`eager_way`, a public function of the plain norms tries the C++ calls of nodes.cpp (where they were
built), which return None for whatever is not usual.

``RMSNORM_COMPILE`` says what ``torch.compile`` sees of a call: ``operator`` (the default), the kernels as one operator
of ``torch.library``, except that a small call on a CPU is the torch expression, which Inductor fuses with what
surrounds it; or ``decompose``, that expression for every call.
"""

import importlib.util
import os
import warnings
from collections.abc import Callable
from enum import IntEnum
from importlib import metadata
from types import ModuleType

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from rmsnorm import native
from rmsnorm.torch.indirect import holds_tensors


class Way(IntEnum):
    """How a call is served."""

    COMPOSITE = native.COMPOSITE
    """torch's own operations: any device, subclass, transform, mode and order of derivative."""
    KERNEL = native.KERNEL
    """The device's kernels, straight on the tensors: no gradient can be asked for."""
    AUTOGRAD = native.AUTOGRAD
    """An autograd node around the kernels."""
    OPERATOR = 3
    """In a graph that is being captured: one operator of torch.library, which calls the kernels when it runs."""


COMPOSITE, KERNEL, AUTOGRAD, OPERATOR = map(int, Way)  # an enum's member costs 0.07 µs a use


# ---- what is active ----

_functorch_level = torch._C._functorch.peek_interpreter_stack
_dispatch_modes, _included = torch._C._len_torch_dispatch_stack, torch._C._dispatch_tls_is_dispatch_key_included
_PRE_DISPATCH, _VMAP = map(torch._C._dispatch_key_parse, ("PreDispatch", "VmapMode"))


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


# ---- which device has kernels ----

TRITON = (3, 6)  # torch 2.10's: the first whose launcher takes what triton/launch.py hands it


def _why_no_triton() -> str | None:
    if torch.version.cuda is None and torch.version.hip is None:
        return "this torch is built without CUDA or ROCm"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    if not hasattr(Tensor, "__dlpack_c_exchange_api__"):
        return f"it needs torch >= 2.10, this is {torch.__version__}"
    try:
        version = metadata.version("triton")
    except metadata.PackageNotFoundError:  # torch's builds for ROCm name the package differently
        return None
    if tuple(int(part) for part in version.split("+")[0].split(".")[:2]) < TRITON:
        return f"it needs Triton >= {TRITON[0]}.{TRITON[1]}, this is {version}"
    return None


why_no_triton: str | None = _why_no_triton()
"""Why CUDA tensors have no kernels. None: they have, unless :func:`triton` finds out that these do not run."""


_triton: ModuleType | None = None


def triton(device: torch.device | None = None) -> ModuleType | None:
    """The kernels of CUDA tensors, imported and tried on ``device`` at the first call; None if they do not run here.

    None, too, while a stream is captured into a CUDA graph and nothing was tried before: the driver loads no kernel
    then, which says nothing about later calls.
    """
    global _triton, why_no_triton
    if _triton is not None or why_no_triton is not None:
        return _triton
    slower = "rmsnorm: CUDA tensors take torch's operations, slower"
    if torch.cuda.is_current_stream_capturing():
        warnings.warn(f"{slower}: a CUDA graph is being captured; run the step once before", stacklevel=5)
        return None
    try:
        from rmsnorm.torch.triton import functions

        functions.check(device)
    except Exception as error:  # Triton compiles C against the driver: no compiler, no headers, another driver
        why_no_triton = f"Triton does not run here: {type(error).__name__}: {error}"
        warnings.warn(f"{slower}: {why_no_triton}", stacklevel=5)
        return None
    _triton = functions
    return functions


def tried_triton() -> str | None:
    """:data:`why_no_triton` after a kernel was compiled and launched, if there is a device."""
    if why_no_triton is None and torch.cuda.is_available():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            triton()
    return why_no_triton


# ---- the way of a call ----

_ORDINARY = (Tensor, torch.nn.Parameter)


def _cuda_way(*tensors: Tensor | None) -> int:
    """What native/way.h answers for a CPU."""
    if why_no_triton or transformed() or dispatch_modes() or torch._C._get_tracing_state() is not None:
        return COMPOSITE
    recorded, way = torch.is_grad_enabled(), KERNEL
    for t in tensors:  # generators would cost 0.5 µs
        if t is not None:
            if type(t) not in _ORDINARY or t.is_neg():
                return COMPOSITE
            if recorded and t.requires_grad:
                way = AUTOGRAD
    return way


def _way(input: Tensor, *others: Tensor | None) -> int:
    if getattr(input, "is_cuda", False) is True:  # torch.fx's proxy answers with a proxy, which has no truth value
        return _cuda_way(input, *others)
    return COMPOSITE if native.missing else native.kernels.way(input, *others)


if not native.missing:
    native.kernels.set_way(
        Tensor,
        torch.nn.Parameter,
        vars(forward_ad),
        _functorch_level,
        _dispatch_modes,
        _included,
        _PRE_DISPATCH,
        torch._C._get_tracing_state,
        torch.is_grad_enabled,
    )

eager_way: Callable[..., int] = _way if native.missing or not why_no_triton else native.kernels.way
"""(input, *others) → the way of an eager call: COMPOSITE, KERNEL or AUTOGRAD; others may be None.

If CUDA tensors have no kernels it is the C++ function itself, so that CPU calls skip the check."""


def has_no_numbers(input: Tensor) -> bool:
    """Whether the operator can stand for the composite in an eager call, whose tensors have shapes and nothing else."""
    return not transformed() and (input.is_meta or isinstance(input, FakeTensor))


def _decomposed() -> bool:
    wanted = os.environ.get("RMSNORM_COMPILE") or "operator"
    if wanted not in ("operator", "decompose"):
        raise ImportError(f"RMSNORM_COMPILE must be operator or decompose, got {wanted!r}; unset it for operator")
    return wanted == "decompose"


_AS_OPERATOR = {"cpu": not _decomposed() and not native.missing, "cuda": not _decomposed() and not why_no_triton}


SMALL = 4096
"""The most elements of a call that ``torch.compile`` sees as its expression."""

FUSED = {torch.float32: 2**21, torch.bfloat16: 2**15, torch.float16: 2**15}
"""The same where the expression is computed in float32 (norm/composite.py): Inductor fuses it with its neighbours.
Larger calls take fewer passes as operators, except for float32 ones without gradients, which are fused at every size.

Medians of `rmsnorm bench --op compiled_chain`, as multiples of ``F.rms_norm``'s, with the expression and with the
operator (compiled-chains and compiled-chains-operators of 2026-11-27 in benchmarks/results), one thread of an EPYC:
float32 forward 1.10 and 1.19 at 16 x 1024, 1.05 and 1.25 at 1024 x 1024, training 1.04 and 1.25, 1.01 and 1.00;
bfloat16 forward 1.13 and 1.22 at 16 x 1024, 1.19 and 1.13 at 64 x 1024.
"""

_SIZES_ARE_TOLD = hasattr(Tensor, "__dlpack_c_exchange_api__")  # torch >= 2.10: Dynamo traces what _is_small asks


def graph_way(input: Tensor, *others: Tensor, writes: bool = False, in_float32: bool = False) -> int:
    """The way of a call in a graph that is being captured: OPERATOR or COMPOSITE; ``others`` have rows too.

    ``writes``: into a given tensor. Inductor of torch 2.13 fails on some fused expressions that do (KeyError: 'buf1').
    ``in_float32``: how the expression is computed.
    """
    if transformed() or holds_tensors(input):
        return COMPOSITE
    as_operator = _AS_OPERATOR["cpu"] if input.is_cpu else input.is_cuda and _AS_OPERATOR["cuda"]
    return OPERATOR if as_operator and (writes or not _is_small(in_float32, input, *others)) else COMPOSITE


def _is_small(in_float32: bool, input: Tensor, *others: Tensor) -> bool:
    """Whether a call has few elements, in a shape that is known now, and its expression's results have the operator's
    strides. An exported graph keeps the operator, whatever its size."""
    if not _SIZES_ARE_TOLD or not input.is_cpu or input.dtype not in FUSED or torch.compiler.is_exporting():
        return False
    # Imported here: it takes SymPy along, and torch.compile has both.
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    most = FUSED[input.dtype] if in_float32 else SMALL
    if in_float32 and input.dtype == torch.float32 and not torch.is_grad_enabled():
        most = 2**62
    few = statically_known_true(input.numel() <= most)
    return few and all(isinstance(t, Tensor) and t.is_contiguous() for t in (input, *others))


def fused(input: Tensor) -> bool:
    """Whether a norm of ``input`` is traced for a compiler that fuses it with what surrounds it, on a CPU."""
    return is_compiling() and not transformed() and input.is_cpu and input.dtype in FUSED
