"""torch's own norms on this project's kernels, for the whole process: ``F.rms_norm``, and ``F.layer_norm`` if asked.

torch computes ``aten::rms_norm`` on a CPU by a composition of operations, under every dispatch key. An implementation
for the keys CPU and AutogradCPU takes its place there, and nowhere else: transforms, fake tensors, nested tensors,
other devices and captured graphs never see it, or are handed on to torch's composition.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import torch
from torch import Tensor

from rmsnorm import native
from rmsnorm.torch.dispatch import COMPOSITE, eager_way
from rmsnorm.torch.functional import layer_norm, rms_norm

SCHEMAS = {
    "rms_norm": "aten::rms_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight=None, float? eps=None) "
    "-> Tensor",
    "layer_norm": "aten::layer_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight=None, Tensor? bias=None, "
    "float eps=1.0000000000000001e-05, bool cudnn_enable=True) -> Tensor",
}
"""The operators as torch 2.4 to 2.13 declare them. An implementation with other arguments would crash at the call."""

_REFUSED = ValueError, TypeError, NotImplementedError  # what torch's composition may take all the same


class Acceleration:
    """What :func:`accelerate` switched on: a context manager, or ``undo()``."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        _switch(names, +1)

    def undo(self) -> None:
        """Switches off what this call switched on; a second time it does nothing."""
        names, self._names = self._names, ()
        _switch(names, -1)

    def __enter__(self) -> "Acceleration":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        return f"<accelerate: {', '.join(self._names) or 'undone'}>"


def accelerate(*, layer_norm: bool = False) -> Acceleration:
    r"""Every :class:`torch.nn.RMSNorm` and ``F.rms_norm`` of the process takes this project's CPU kernels.

    .. math:: y_i = \frac{x_i}{\sqrt{\frac{1}{n} \sum_j x_j^2 + eps}} \, g_i

    No model is changed. Norms that are classes of their own, as Hugging Face's are, do not call ``F.rms_norm``, and are
    not reached.

    Args:
        layer_norm: ``F.layer_norm`` and :class:`torch.nn.LayerNorm` too. That pays for large inputs only: a small
            call takes some microseconds longer than torch's own, since it goes through Python (docs/models.md says how
            to measure from where on it pays).

    Arguments, result dtypes, strides and errors are torch's, and so are the strides of gradients (if the result's
    gradient has the result's strides): what the kernels do not take (a negative eps, a complex or
    integer input), and what something watches or transforms (``vmap``, dispatch modes, fake tensors), is torch's own
    composition. So is every compiled or exported graph, which keeps torch's operators. Results differ from torch's at
    the level of rounding. Rows whose squares overflow or underflow are right here, where torch returns 0, or infinity.
    torch's warning that input and gain differ in dtype is not given.

    The switch is the process's: all threads see it. torch's dispatcher does not guard a call in progress against a
    change of its operator, so switch while no other thread computes a norm. Calls may be nested and repeated: the
    kernels serve until each is undone, in any order.

    Returns:
        an object whose ``undo()`` switches off again; as a context manager it does so at the end.

    Raises:
        NotImplementedError: torch declares the operators otherwise than 2.4 to 2.13, or the C++ kernels are missing.
        RuntimeError: another library has replaced the operator.

    Source: Zhang & Sennrich, "Root Mean Square Layer Normalization" (2019); Ba, Kiros & Hinton (2016).

    Example:
        >>> with accelerate():
        ...     torch.nn.RMSNorm(2)(torch.tensor([[3.0, 4.0]])).detach()
        tensor([[0.8485, 1.1314]])
    """
    if not isinstance(layer_norm, bool):
        raise TypeError(f"layer_norm must be a bool, got {type(layer_norm).__name__}")
    return Acceleration(("rms_norm", "layer_norm") if layer_norm else ("rms_norm",))


# ---- the switch ----

_lock = threading.Lock()
_users = dict.fromkeys(SCHEMAS, 0)
_libraries: dict[str, torch.library.Library] = {}


def _switch(names: tuple[str, ...], by: int) -> None:
    with _lock:
        for name in names if by > 0 else ():
            if not _users[name]:
                _check(name)
        counted = []
        try:
            for name in names:
                _count(name, by)
                counted.append(name)
        except BaseException:  # an interruption too: nobody could undo what is counted
            for name in counted:
                _count(name, -by)
            raise


def _count(name: str, by: int) -> None:
    if by > 0 and name not in _libraries:
        library = torch.library.Library("aten", "IMPL")
        try:
            for key in ("CPU", "AutogradCPU"):
                library.impl(name, _IMPLEMENTATIONS[name], key)
        except BaseException:
            library._destroy()
            raise
        _libraries[name] = library
    _users[name] += by
    if not _users[name]:
        _libraries.pop(name)._destroy()


@contextmanager
def as_before() -> Iterator[None]:
    """Puts the switch back at the end, also where an interruption came between a call and its undo."""
    before = dict(_users)
    try:
        yield
    finally:
        for name, count in before.items():
            while _users[name] > count:
                _switch((name,), -1)


def _check(name: str) -> None:
    """The operator is what we know, and is torch's own."""
    if native.missing:
        raise NotImplementedError(f"accelerate() needs the CPU kernels, and {native.missing}")
    schema = str(getattr(torch.ops.aten, name).default._schema)
    if schema != SCHEMAS[name] or not _has_kernel(name, "CompositeImplicitAutograd"):
        raise NotImplementedError(
            f"accelerate() knows aten::{name} as torch 2.4 to 2.13 have it, got torch {torch.__version__} with "
            f"{schema}; use the modules of rmsnorm.torch there"
        )
    taken = [key for key in ("CPU", "AutogradCPU") if _has_kernel(name, key)]
    if taken:
        raise RuntimeError(
            f"aten::{name} must be torch's own for accelerate(), got an implementation of another library for "
            f"{' and '.join(taken)}; remove that one first"
        )


def _has_kernel(name: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", key)


# ---- the implementations: what the kernels serve, and otherwise torch's composition ----
#
# Each condition is one that this project's functions do not check, or answer otherwise than torch. They are in one
# expression because a call of a Python function costs as much as the kernel of a short row.


def _rms_norm(
    input: Tensor, normalized_shape: list[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    if eager_way(input, weight, None) != COMPOSITE and (
        weight is None
        or (
            weight.shape == tuple(normalized_shape)  # no gain for each head
            and not (weight.is_inference() and input.requires_grad and torch.is_grad_enabled())  # cannot be saved
        )
    ):
        try:
            if input.is_contiguous():
                return rms_norm(input, normalized_shape, weight, eps)
            if input.layout is torch.strided and not _maybe_channels_last(input):
                # torch copies it too: result and gradient are contiguous
                return rms_norm(input.contiguous(), normalized_shape, weight, eps)
        except _REFUSED:
            pass
    return torch.ops.aten.rms_norm.default.decompose(input, normalized_shape, weight, eps)


def _layer_norm(
    input: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    if eager_way(input, weight, bias) != COMPOSITE and _layer_norm_takes(input, normalized_shape, weight, bias):
        try:
            if input.layout is torch.strided:
                return layer_norm(input.contiguous(), normalized_shape, weight, bias, eps)
        except _REFUSED:
            pass
    return torch.ops.aten.layer_norm.default.decompose(input, normalized_shape, weight, bias, eps, cudnn_enable)


_IMPLEMENTATIONS = {"rms_norm": _rms_norm, "layer_norm": _layer_norm}


def _maybe_channels_last(input: Tensor) -> bool:
    """torch's composition keeps that layout of four or five dimensions and makes all others contiguous."""
    return input.dim() in (4, 5) and input.stride(1) <= input.stride(-1)


def _layer_norm_takes(input: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None) -> bool:
    """No gain for each head; one dtype for all, or float32 parameters beside a shorter input; nothing made in inference
    mode that autograd would have to save."""
    given = [t for t in (weight, bias) if t is not None]
    same = all(t.dtype == input.dtype for t in given)
    mixed = input.dtype in (torch.bfloat16, torch.float16) and all(t.dtype == torch.float32 for t in given)
    if not (same or mixed) or any(t.shape != tuple(shape) for t in given):
        return False
    given.append(input)
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in given)
    return not (recorded and any(t.is_inference() for t in given))
