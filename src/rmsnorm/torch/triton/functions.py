"""The kernels as :mod:`rmsnorm.torch.kernels` calls them: ``True`` when the work is done, ``False`` where they decline.

The arguments are those of the C++ kernels, and so is what is declined. A call is checked and laid out once for each
combination of shapes, strides and dtypes; the same again costs a look in a dictionary and the launch.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rmsnorm import native
from rmsnorm.spec import check_eps, check_shape, partial_count
from rmsnorm.torch.triton import backward, choices, forward, launch, layout

Plan = Callable[[Sequence[Tensor | None], Sequence[int]], None]
_plans: dict[Any, Plan | None] = {}
_MOST = 8192  # plans kept: a server that has seen more shapes than this begins anew
_interpreters = torch._C._functorch.peek_interpreter_stack


def rms_norm(x, shape, weight, bias, y, eps, p, flags) -> bool:
    """y = x / RMS(x) ⊙ g + b into ``y``."""
    return _call(_plan_forward, False, (x, None, weight, bias, y, None), shape, eps, p, flags)


def layer_norm(x, shape, weight, bias, y, eps, flags) -> bool:
    """y = (x − μ)/σ ⊙ g + b into ``y``."""
    return _call(_plan_forward, True, (x, None, weight, bias, y, None), shape, eps, 1.0, flags)


def add_rms_norm(x, residual, shape, weight, bias, y, new, eps, p, flags) -> bool:
    """The rounded sum of ``x`` and ``residual`` into ``new``, and its norm into ``y``."""
    return _call(_plan_forward, False, (x, residual, weight, bias, y, new), shape, eps, p, flags)


def rms_norm_backward(dy, x, shape, weight, dx, plus, dweight, dbias, eps, p, flags) -> bool:
    """The gradients of :func:`rms_norm` into ``dx`` (``plus`` added), ``dweight`` and ``dbias``; None: unwanted."""
    return _call(_plan_backward, False, (x, dy, weight, plus, dx, dweight, dbias), shape, eps, p, flags)


def layer_norm_backward(dy, x, shape, weight, dx, plus, dweight, dbias, eps, flags) -> bool:
    """The gradients of :func:`layer_norm`."""
    return _call(_plan_backward, True, (x, dy, weight, plus, dx, dweight, dbias), shape, eps, 1.0, flags)


def _call(make: Callable[..., Plan | None], layer: bool, tensors: tuple, shape, eps, p, flags) -> bool:
    x = tensors[0]
    if launch.INTERPRETED:
        return _interpreters() is None and _serve(make, layer, tensors, shape, eps, p, flags)
    if not x.is_cuda or _interpreters() is not None:  # what a transform has wrapped has no memory
        return False
    if x.get_device() == torch.cuda.current_device():
        return _serve(make, layer, tensors, shape, eps, p, flags)
    with torch.cuda.device(x.get_device()):
        return _serve(make, layer, tensors, shape, eps, p, flags)


def _serve(make: Callable[..., Plan | None], layer: bool, tensors: tuple, shape, eps, p, flags) -> bool:
    if isinstance(shape, list):
        shape = tuple(shape)
    addresses = [0 if t is None else t.data_ptr() for t in tensors]
    low = 0
    for address in addresses:
        low |= address
    seen = [None if t is None else (t.dtype, t.shape, t.stride(), t.get_device(), t.is_neg()) for t in tensors]
    key = (make, layer, shape, eps, p, flags, low & 15, *seen)
    try:
        plan = _plans[key]
    except KeyError:
        if len(_plans) >= _MOST:
            _plans.clear()
        plan = _plans[key] = make(layer, tensors, shape, eps, p, flags, low)
    except TypeError:  # an argument that cannot be hashed is none that is served
        return False
    if plan is None or not (make is _plan_backward or flags & native.FRESH or _apart(tensors, addresses)):
        return False
    plan(tensors, addresses)
    return True


def _apart(tensors: Sequence[Tensor | None], addresses: Sequence[int]) -> bool:
    """Whether what is written (the tensors from the fifth on) shares no memory with another but a row's own input."""
    extents = [
        (0, 0) if t is None or not t.numel() else (a, a + t.element_size() * (1 + _reach(t)))
        for t, a in zip(tensors, addresses, strict=True)
    ]
    for i in range(4, len(tensors)):
        for j, other in enumerate(tensors):
            overlap = extents[i][0] < extents[j][1] and extents[j][0] < extents[i][1]
            if i != j and overlap and not _same_rows(tensors[i], other, j):
                return False
    return True


def _same_rows(written: Any, read: Any, place: int) -> bool:
    """A row is read before it is written: an input may be overwritten, each row by its own result."""
    return (
        place in (0, 1)
        and written.data_ptr() == read.data_ptr()
        and written.dtype == read.dtype
        and written.stride() == read.stride()
    )


def _reach(t: Tensor) -> int:
    return sum((extent - 1) * stride for extent, stride in zip(t.shape, t.stride(), strict=True))


# ---- plans: what is decided once for a combination of shapes, strides and dtypes ----


class _Problem:
    """The arguments, checked; ``served`` is False where some are wrong or not for these kernels."""

    served = False

    def __init__(self, layer: bool, tensors: Sequence[Tensor | None], rows: Sequence[int], shape, eps, p, flags, low):
        """``rows``: the places of the tensors that have x's shape; the third is the gain."""
        x = tensors[0]
        assert x is not None
        try:
            self.shape = check_shape(shape)
            eps = check_eps(eps)
            self.n = math.prod(self.shape)
            self.k = partial_count(self.n, p)
        except (TypeError, ValueError):
            return
        self.dims = len(self.shape)
        if x.dtype not in launch.TYPES or tuple(x.shape[x.dim() - self.dims :]) != self.shape or x.dim() < self.dims:
            return
        alike = [t for place in rows if (t := tensors[place]) is not None]
        for t in alike:
            if t.shape != x.shape or t.dtype not in launch.TYPES:
                return
            if not layout.contiguous(self.shape, t.stride()[t.dim() - self.dims :]):
                return
        if any(t is not None and (t.get_device() != x.get_device() or t.is_neg()) for t in tensors):
            return
        heads = {self._heads(x, t) for place, t in enumerate(tensors) if t is not None and place not in rows} or {1}
        if len(heads) > 1 or 0 in heads:
            return
        (self.heads,) = heads
        folded = layout.levels(alike, self.dims, ordered=self.heads > 1)
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
        """1 for a gain that all rows share, the number of heads if each has its own, 0 for neither."""
        if not t.is_contiguous() or t.dtype not in launch.TYPES:
            return 0
        if tuple(t.shape) == self.shape:
            return 1
        outer = x.dim() - self.dims
        return x.shape[outer - 1] if outer and tuple(t.shape) == tuple(x.shape[outer - 1 :]) else 0

    def integers(self) -> list[int]:
        return [self.rows, self.middle, self.inner, self.heads, *self.strides]


def _launcher(kernel: Any, problem: _Problem, tensors: Sequence[Tensor | None], like: torch.dtype, choice, **constants):
    fixed = problem.constants | constants | {"ROWS": choice.rows, "BLOCK": choice.block}
    named = tuple((name, value) for name, value in fixed.items() if name in kernel.arg_names)
    pointers = tuple(like if t is None else t.dtype for t in tensors)
    device = tensors[0].get_device() if tensors[0] is not None else 0
    return launch.launcher(kernel, pointers, problem.wide, named, choice, device)


def _plan_forward(layer: bool, tensors, shape, eps, p, flags, low) -> Plan | None:
    x, residual, weight, bias, y, new = tensors
    problem = _Problem(layer, tensors, (0, 1, 4, 5), shape, eps, p, flags, low)
    if not problem.served or any(t is not None and t.dtype != x.dtype for t in (residual, new)):
        return None
    expected = x.dtype
    if flags & native.ROUND_FIRST:
        expected = x.dtype if weight is None else torch.promote_types(x.dtype, weight.dtype)
        product = expected
        if bias is not None:
            expected = torch.promote_types(expected, bias.dtype)
        # One rounding between product and sum is made, to y's dtype; and products in float64 are for float64 rows.
        if (weight is not None and product != expected) or (expected == torch.float64 != x.dtype):
            return None
    if y.dtype != expected:
        return None
    if problem.rows == 0:
        return lambda tensors, addresses: None
    choice = choices.forward(problem.n, x.element_size(), launch.target(x.get_device()).warp_size)
    kernel = forward.forward_looped_kernel if choice.looped else forward.forward_kernel
    run = _launcher(
        kernel,
        problem,
        tensors,
        x.dtype,
        choice,
        ADD=residual is not None,
        HAS_WEIGHT=weight is not None,
        HAS_BIAS=bias is not None,
    )
    programs, integers = -(-problem.rows // choice.rows), problem.integers()
    return lambda tensors, addresses: run(programs, 1, tensors, addresses, integers)


def _zero_sums(tensors: Sequence[Tensor | None], addresses: Sequence[int]) -> None:
    for t in tensors[5:]:
        if t is not None:
            t.zero_()


def _plan_backward(layer: bool, tensors, shape, eps, p, flags, low) -> Plan | None:
    x, dy, weight, plus, dx, dweight, dbias = tensors
    problem = _Problem(layer, tensors, (0, 1, 3, 4), shape, eps, p, flags, low)
    half = x.element_size() == 2
    if not problem.served or not (dy.dtype == x.dtype or (half and dy.dtype == torch.float32)):
        return None
    if any(t is not None and t.dtype != x.dtype for t in (plus, dx)):
        return None
    sums = [t for t in (dweight, dbias) if t is not None]
    if problem.rows == 0:
        return _zero_sums
    heads, columns = problem.heads, problem.heads * problem.n
    warp_size, device = launch.target(x.get_device()).warp_size, x.get_device()
    choice = choices.backward(problem.n, dy.element_size(), layer, len(sums), warp_size)
    programs = choices.grid(choice, problem.rows, heads, launch.multiprocessors(device))
    kernel = backward.backward_looped_kernel if choice.looped else backward.backward_kernel
    partial = torch.empty(0, dtype=problem.compute)  # stands for its dtype
    given = (x, dy, weight, plus, dx, *(None if t is None else partial for t in (dweight, dbias)))
    run = _launcher(
        kernel,
        problem,
        given,
        problem.compute,
        choice,
        PLUS=plus is not None,
        HAS_WEIGHT=weight is not None,
        DX=dx is not None,
        DWEIGHT=dweight is not None,
        DBIAS=dbias is not None,
        LEAF=choices.LEAF,
        HOLD=choice.hold,
    )
    integers = problem.integers()
    if not sums:
        return lambda tensors, addresses: run(programs, 1, tensors, addresses, integers)
    last = choices.finish(warp_size)
    end = _launcher(
        backward.finish_kernel, problem, (partial, dweight, dbias), problem.compute, last, DWEIGHT=dweight is not None
    )
    parts, compute = programs // heads, problem.compute
    shape, size = (len(sums), programs * problem.n), programs * problem.n * partial.element_size()

    def launch_both(tensors: Sequence[Tensor | None], addresses: Sequence[int]) -> None:
        x = tensors[0]
        assert x is not None
        buffer = torch.empty(shape, dtype=compute, device=x.device)
        start = buffer.data_ptr()
        rows, to = tensors[:5], tensors[5:]
        first = (buffer[0] if to[0] is not None else None, buffer[-1] if to[1] is not None else None)
        places = (start, start + size if to[0] is not None else start)
        run(programs, 1, (*rows, *first), (*addresses[:5], *places), integers)
        end(-(-columns // last.block), len(sums), (buffer, *to), (start, *addresses[5:]), (parts, columns))

    return launch_both
