"""A call's plan: which kernels serve it, and with which constants. It is made once for tensors that look alike.

The next such call costs a look-up in a dictionary and the launch.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rmsnorm import native
from rmsnorm.spec import check_eps, check_shape, partial_count
from rmsnorm.torch.triton import backward_kernels, choices, launch, layout

Plan = Callable[[Sequence[Tensor | None], Sequence[int]], None]
"""Serves a call: its tensors, then their addresses."""
plans: dict[Any, Plan | None] = {}
_MOST = 8192  # plans kept; then all are dropped
_interpreters = torch._C._functorch.peek_interpreter_stack
_current_device = getattr(torch._C, "_cuda_getDevice", torch.cuda.current_device)  # without the check for a device
INPUTS = 4  # of a call's tensors; the others are outputs


def call(make: Callable[..., Plan | None], variant: bool, tensors: tuple, shape, eps, p, flags) -> bool:
    """Serve a call by its plan, on the device of its tensors; ``make`` makes the plan of an operation's ``variant``."""
    x = tensors[0]
    if launch.INTERPRETED:
        return _interpreters() is None and _serve(make, variant, tensors, shape, eps, p, flags)
    if not x.is_cuda or _interpreters() is not None:  # a transform's tensors have no memory
        return False
    if x.get_device() == _current_device():
        return _serve(make, variant, tensors, shape, eps, p, flags)
    with torch.cuda.device(x.get_device()):
        return _serve(make, variant, tensors, shape, eps, p, flags)


def _serve(make: Callable[..., Plan | None], variant: bool, tensors: tuple, shape, eps, p, flags) -> bool:
    if isinstance(shape, list):
        shape = tuple(shape)
    found = describe(tensors)
    if found is None:
        return False
    said, addresses, low = found
    key = make, variant, shape, eps, p, flags, said, low & (choices.VECTOR - 1)
    try:
        plan = plans[key]
    except KeyError:
        if len(plans) >= _MOST:
            plans.clear()
        try:
            plan = make(variant, tensors, shape, eps, p, flags, low)
        except (launch.NotCompiled, launch.Capturing) as error:
            warnings.warn(f"rmsnorm: torch's operations serve these tensors, slower: {error}", stacklevel=2)
            if isinstance(error, launch.Capturing):
                return False  # the next call may have a plan
            plan = None
        plans[key] = plan
    except TypeError:  # an argument that cannot be hashed is not served
        return False
    if plan is None or not (flags & native.FRESH or _apart(tensors, addresses)):
        return False
    plan(tensors, addresses)
    return True


Described = tuple[Any, Sequence[int], int]


def _describe(tensors: tuple[Tensor | None, ...]) -> Described | None:
    """What a plan depends on; the tensors' addresses; the bits that any of these has set. None: one has no memory."""
    said: list[Any] = []
    addresses, low = [], 0
    for t in tensors:
        try:
            address = 0 if t is None else t.data_ptr()
        except RuntimeError:  # sparse, or of another library's layout
            return None
        addresses.append(address)
        low |= address
        if t is None:
            said.append(None)
            continue
        if address == t.storage_offset() * t.element_size() and t.numel():
            return None
        said += (t.dtype, t.shape, t.stride(), t.get_device(), t.is_neg())
    return tuple(said), addresses, low


describe: Callable[[tuple[Tensor | None, ...]], Described | None] = _describe
"""nodes.cpp has the same in C++, which functions.connect puts here."""


def _apart(tensors: Sequence[Tensor | None], addresses: Sequence[int]) -> bool:
    """Whether each output shares no memory with another tensor, except rows in place, and none with itself."""
    extents = [
        (0, 0) if t is None or not t.numel() else (a, a + t.element_size() * (1 + _reach(t)))
        for t, a in zip(tensors, addresses, strict=True)
    ]
    for i in range(INPUTS, len(tensors)):
        if (output := tensors[i]) is not None and layout.overlaps(output.shape, output.stride()):
            return False
        for j, other in enumerate(tensors):
            overlap = extents[i][0] < extents[j][1] and extents[j][0] < extents[i][1]
            if i != j and overlap and not _same_rows(tensors[i], other, j):
                return False
    return True


def _same_rows(written: Any, read: Any, place: int) -> bool:
    """An input may be overwritten, each row by its own result: a row is read before it is written."""
    return (
        place in (0, 1)
        and written.data_ptr() == read.data_ptr()
        and written.dtype == read.dtype
        and written.stride() == read.stride()
    )


def _reach(t: Tensor) -> int:
    return sum((extent - 1) * stride for extent, stride in zip(t.shape, t.stride(), strict=True))


class Problem:
    """A call's arguments, checked once; ``served`` is False if one is wrong or not for these kernels."""

    served = False

    def __init__(
        self,
        layer: bool,
        tensors: Sequence[Tensor | None],
        rows: Sequence[int],
        shape: Any,
        eps: Any,
        p: Any,
        flags: int,
        low: int,
        ordered: bool = False,
    ):
        """The tensors begin with x.

        rows: the places of those with x's shape; the others are parameters. low: the bits that any address has set.
        ordered: as in layout.
        """
        x = tensors[0]
        assert x is not None
        try:
            self.shape = check_shape(shape)
            eps = check_eps(eps)
            self.n = math.prod(self.shape)
            self.k = partial_count(self.n, p)
        except (TypeError, ValueError):
            return
        self.dims, self.device = len(self.shape), x.get_device()
        if x.dtype not in launch.TYPES or tuple(x.shape[x.dim() - self.dims :]) != self.shape or x.dim() < self.dims:
            return
        alike = [t for place in rows if (t := tensors[place]) is not None]
        for t in alike:
            if t.shape != x.shape:  # the operation checks their dtypes
                return
            if not layout.contiguous(self.shape, t.stride()[t.dim() - self.dims :]):
                return
        if any(t is not None and (t.get_device() != x.get_device() or t.is_neg()) for t in tensors):
            return
        heads = {self._heads(x, t) for place, t in enumerate(tensors) if t is not None and place not in rows} or {1}
        if len(heads) > 1 or 0 in heads:
            return
        (self.heads,) = heads
        if self.heads * self.n > launch.INT32:
            return
        folded = layout.levels(alike, self.dims, ordered=ordered or self.heads > 1)
        if folded is None:
            return
        (self.middle, self.inner), strides, self.levels = folded
        self.rows = x.numel() // self.n if self.n else 0
        if self.rows == 0:
            self.served = True
            return
        given = iter(strides)
        self.strides = [s for place in rows for s in (next(given) if tensors[place] is not None else (0, 0, 0))]
        low |= self.n * x.element_size()
        for t, found in zip(alike, strides, strict=True):
            for stride in found:
                low |= stride * t.element_size()
        self.bytes = min(choices.VECTOR, low & -low)
        self.wide = self.rows > launch.INT32
        compute = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.compute, self.layer = compute, layer
        self.constants: dict[str, Any] = {
            "N": self.n,
            "K": self.k,
            "ROOT": math.sqrt(torch.finfo(compute).eps if eps is None else eps),
            "LAYER": layer,
            "HEADS": self.heads > 1,
            "ZERO_CENTERED": bool(flags & native.ZERO_CENTERED),
            "ROUND_FIRST": bool(flags & native.ROUND_FIRST),
            "LEVELS": self.levels,
            "BYTES": self.bytes,
        }
        self.served = True

    def _heads(self, x: Tensor, t: Tensor) -> int:
        """1 for a gain that all rows share, the number of heads if each has its own, 0 otherwise."""
        if not t.is_contiguous() or t.dtype not in launch.TYPES:
            return 0
        if tuple(t.shape) == self.shape:
            return 1
        outer = x.dim() - self.dims
        return x.shape[outer - 1] if outer and tuple(t.shape) == tuple(x.shape[outer - 1 :]) else 0

    def launcher(
        self, kernel: Any, tensors: Sequence[Tensor | None], like: torch.dtype, choice: choices.Choice, **constants: Any
    ) -> launch.Launcher:
        """The launcher of a kernel with these constants and the problem's; ``like``: the dtype of absent tensors."""
        fixed = self.constants | constants | {"ROWS": choice.rows, "BLOCK": choice.block}
        named = tuple((name, value) for name, value in fixed.items() if name in kernel.arg_names)
        pointers = tuple(like if t is None else t.dtype for t in tensors)
        return launch.launcher(kernel, pointers, self.wide, named, choice, self.device)

    def integers(self) -> list[int]:
        """A kernel's arguments after its pointers."""
        return [self.rows, self.middle, self.inner, self.heads, *self.strides]


def zero_sums(first: int) -> Plan:
    """Without rows the sums over rows, the tensors from ``first`` on, are zero."""

    def plan(tensors: Sequence[Tensor | None], addresses: Sequence[int]) -> None:
        for t in tensors[first:]:
            if t is not None:
                t.zero_()

    return plan


def with_finish(
    run: Plan, programs: int, most: int, problem: Problem, tensors: Sequence[Tensor | None], first: int
) -> Plan:
    """The plan of a backward kernel and of the one that adds its programs' partial sums.

    ``run`` leaves a row of partial sums for each program in place of the tensors from ``first`` on: dweight, and dbias
    where the operation has one. Those that are None are not wanted. A head has at most ``most`` programs, for any
    number of rows.
    """
    wanted = [t is not None for t in tensors[first:]]
    if not any(wanted):
        return run
    slots = [sum(wanted[:i]) if there else None for i, there in enumerate(wanted)]
    partial = torch.empty(0, dtype=problem.compute, device=tensors[0].device)  # type: ignore[union-attr]
    last = choices.finish(most, launch.target(tensors[0].get_device()).warp_size)  # type: ignore[union-attr]
    sums = (*tensors[first:], None)[:2]
    finish = problem.launcher(
        backward_kernels.finish_kernel, (partial, *sums), problem.compute, last, DWEIGHT=wanted[0]
    )
    parts, columns = programs // problem.heads, problem.heads * problem.n
    shape, size = (sum(wanted), programs * problem.n), programs * problem.n * partial.element_size()
    blocks, more = -(-columns // last.block), [None] * (2 - len(wanted))
    offsets = [0 if slot is None else slot * size for slot in slots]

    def plan(tensors: Sequence[Tensor | None], addresses: Sequence[int]) -> None:
        buffer = partial.new_empty(shape)
        start = buffer.data_ptr()
        # On a device an address is all that is needed; a view would cost 1 µs.
        scratch = [None if slot is None else buffer[slot] for slot in slots] if launch.INTERPRETED else slots
        run((*tensors[:first], *scratch), (*addresses[:first], *(start + offset for offset in offsets)))
        to = (*tensors[first:], *more), (*addresses[first:], *(0 for _ in more))
        finish(blocks, shape[0], (buffer, *to[0]), (start, *to[1]), (parts, columns))

    return plan
