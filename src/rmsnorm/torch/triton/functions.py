"""The kernels as :mod:`rmsnorm.torch.bindings` has them: ``True`` when the work is done, ``False`` where they decline.

The arguments are those of the C++ kernels, and so is what is declined. How a call is served: plans.py.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rmsnorm import native
from rmsnorm.torch.triton import backward, backward_looped, choices, forward, launch
from rmsnorm.torch.triton.gated import rms_norm_gated as rms_norm_gated
from rmsnorm.torch.triton.gated import rms_norm_gated_backward as rms_norm_gated_backward
from rmsnorm.torch.triton.plans import Plan, Problem, call, launcher
from rmsnorm.torch.triton.quantized import rms_norm_quantized as rms_norm_quantized


def rms_norm(x, shape, weight, bias, y, eps, p, flags) -> bool:
    """y = x / RMS(x) ⊙ g + b into ``y``."""
    return call(_plan_forward, False, (x, None, weight, bias, y, None), shape, eps, p, flags)


def layer_norm(x, shape, weight, bias, y, eps, flags) -> bool:
    """y = (x − μ)/σ ⊙ g + b into ``y``."""
    return call(_plan_forward, True, (x, None, weight, bias, y, None), shape, eps, 1.0, flags)


def add_rms_norm(x, residual, shape, weight, bias, y, new, eps, p, flags) -> bool:
    """The rounded sum of ``x`` and ``residual`` into ``new``, and its norm into ``y``."""
    return call(_plan_forward, False, (x, residual, weight, bias, y, new), shape, eps, p, flags)


def rms_norm_backward(dy, x, shape, weight, dx, plus, dweight, dbias, eps, p, flags) -> bool:
    """The gradients of :func:`rms_norm` into ``dx`` (``plus`` added), ``dweight`` and ``dbias``; None: unwanted."""
    return call(_plan_backward, False, (x, dy, weight, plus, dx, dweight, dbias), shape, eps, p, flags | native.FRESH)


def layer_norm_backward(dy, x, shape, weight, dx, plus, dweight, dbias, eps, flags) -> bool:
    """The gradients of :func:`layer_norm`."""
    return call(_plan_backward, True, (x, dy, weight, plus, dx, dweight, dbias), shape, eps, 1.0, flags | native.FRESH)


def check() -> None:
    """Norms one row on the current device, and raises what keeps a kernel from being compiled or launched there."""
    x = torch.zeros(1, 64, device="cuda")
    tensors = x, None, None, None, torch.empty_like(x), None
    addresses = [0 if t is None else t.data_ptr() for t in tensors]
    plan = _plan_forward(False, tensors, (64,), None, 1.0, native.FRESH, choices.VECTOR)
    if plan is None:
        raise RuntimeError("the kernels decline a row of 64 numbers")
    plan(tensors, addresses)


def _plan_forward(layer: bool, tensors, shape, eps, p, flags, low) -> Plan | None:
    x, residual, weight, bias, y, new = tensors
    problem = Problem(layer, tensors, (0, 1, 4, 5), shape, eps, p, flags, low)
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
    aligned, warp_size = problem.bytes == choices.VECTOR, launch.target(x.get_device()).warp_size
    choice = choices.forward(problem.n, x.element_size(), aligned, warp_size)
    kernel = forward.forward_looped_kernel if choice.looped else forward.forward_kernel
    run = launcher(
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
    problem = Problem(layer, tensors, (0, 1, 3, 4), shape, eps, p, flags, low)
    half = x.element_size() == 2
    if not problem.served or not (dy.dtype == x.dtype or (half and dy.dtype == torch.float32)):
        return None
    if any(t is not None and t.dtype != x.dtype for t in (plus, dx)):
        return None
    sums = [t for t in (dweight, dbias) if t is not None]
    if problem.rows == 0:
        return _zero_sums
    partial = torch.empty(0, dtype=problem.compute)  # stands for its dtype
    given = (x, dy, weight, plus, dx, *(None if t is None else partial for t in (dweight, dbias)))
    found = _held(problem, given) or _looped(problem, given, partial)
    if found is None:
        return None
    run, programs = found
    if not sums:
        return run
    columns, last = problem.heads * problem.n, choices.finish(launch.target(x.get_device()).warp_size)
    end = launcher(
        backward.finish_kernel, problem, (partial, dweight, dbias), problem.compute, last, DWEIGHT=dweight is not None
    )
    parts, compute = programs // problem.heads, problem.compute
    shape, size = (len(sums), programs * problem.n), programs * problem.n * partial.element_size()

    def run_and_finish(tensors: Sequence[Tensor | None], addresses: Sequence[int]) -> None:
        x = tensors[0]
        assert x is not None
        buffer = torch.empty(shape, dtype=compute, device=x.device)
        start = buffer.data_ptr()
        rows, to = tensors[:5], tensors[5:]
        first = (buffer[0] if to[0] is not None else None, buffer[-1] if to[1] is not None else None)
        places = (start, start + size if to[0] is not None else start)
        run((*rows, *first), (*addresses[:5], *places))
        end(-(-columns // last.block), shape[0], (buffer, *to), (start, *addresses[5:]), (parts, columns))

    return run_and_finish


def _wanted(given: Sequence[Tensor | None]) -> dict[str, bool]:
    names = ("HAS_WEIGHT", "PLUS", "DX", "DWEIGHT", "DBIAS")
    return {name: t is not None for name, t in zip(names, given[2:], strict=True)}


def _held(problem: Problem, given: Sequence[Any]) -> tuple[Plan, int] | None:
    """The kernel for rows that fit into registers, and its grid."""
    x, dy, *_ = given
    device, sums = x.get_device(), sum(t is not None for t in given[5:])
    warp_size, aligned = launch.target(device).warp_size, problem.bytes == choices.VECTOR
    choice = choices.backward(problem.n, dy.element_size(), problem.layer, sums, aligned, warp_size)
    if choice is None:
        return None
    programs = choices.grid(choice, problem.rows, problem.heads, launch.multiprocessors(device))
    added = {"LEAF": choices.LEAF, "HOLD": choice.hold, "STAGES": choice.stages} | _wanted(given)
    run = launcher(backward.backward_kernel, problem, given, problem.compute, choice, **added)
    integers = problem.integers()
    return lambda tensors, addresses: run(programs, 1, tensors, addresses, integers), programs


def _looped(problem: Problem, given: Sequence[Any], like: Tensor) -> tuple[Plan, int] | None:
    """The two kernels for longer rows (pRMSNorm: three), and the second's grid of rows; ``like``: their sums' dtype."""
    x, dy, weight, plus, dx, *_ = given
    device, sums = x.get_device(), sum(t is not None for t in given[5:])
    warp_size, aligned = launch.target(device).warp_size, problem.bytes == choices.VECTOR
    columns = choices.backward_columns(dy.element_size(), problem.layer, sums, aligned, warp_size)
    pieces, wanted = -(-problem.n // columns.block), _wanted(given)
    split = wanted["DX"] and choices.splits(problem.n, problem.k, pieces)
    programs = choices.grid(columns, problem.rows, problem.heads, launch.multiprocessors(device), pieces)
    if programs > choices.MOST_Y:
        return None

    def made(kernel: Any, tensors: Sequence[Any], choice: choices.Choice, **added: Any) -> launch.Launcher:
        return launcher(kernel, problem, tensors, problem.compute, choice, STAGES=choice.stages, **(wanted | added))

    rows_choice = choices.backward_rows(dy.element_size(), aligned, warp_size)
    first = made(backward_looped.rows_kernel, (x, dy, weight, like), rows_choice, DX=wanted["DX"] and not split)
    leaf = choices.LEAF
    second = made(backward_looped.columns_kernel, (*given, like, like), columns, LEAF=leaf, SPLIT=split)
    third = None
    if split:
        head, parts = choices.head(problem.k, warp_size), choices.power_of_two(pieces)
        tensors = (x, dy, weight, plus, dx, like, like)
        third = made(backward_looped.head_kernel, tensors, head, PIECES=pieces, PARTS=parts)
    rows, compute, integers = problem.rows, problem.compute, problem.integers()
    found = -(-backward_looped.FOUND * rows // choices.VECTOR) * choices.VECTOR  # what follows is aligned as well
    size = found * like.element_size()

    def run(tensors: Sequence[Tensor | None], addresses: Sequence[int]) -> None:
        assert tensors[0] is not None
        buffer = torch.empty(found + (pieces * rows if split else 0), dtype=compute, device=tensors[0].device)
        at = buffer.data_ptr()
        more, places = (buffer, buffer[found:]), (at, at + size)
        first(rows, 1, (*tensors[:3], buffer), (*addresses[:3], at), integers[:10])
        second(pieces, programs, (*tensors, *more), (*addresses, *places), integers)
        if third is not None:
            third(rows, 1, (*tensors[:5], *more), (*addresses[:5], *places), integers)

    return run, programs
