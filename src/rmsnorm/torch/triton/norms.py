"""rms_norm, layer_norm and add_rms_norm on the host, forward and backward."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rmsnorm import native
from rmsnorm.native.codes import NORM_KINDS
from rmsnorm.torch.triton import (
    backward_kernels,
    choices,
    forward_kernels,
    launch,
    long_backward_kernels,
    parts_kernels,
)
from rmsnorm.torch.triton.plans import Plan, Problem, call, with_finish, zero_sums

SUMS = 5  # where dweight and dbias begin among the tensors of a backward call


def norm(x, residual, weight, bias, y, total, kind, shape, eps, p, flags) -> bool:
    """The norm of ``x`` into ``y``; or ``x`` + ``residual``, rounded, into ``total``, and its norm into ``y``."""
    layer = NORM_KINDS[kind] == "layer"
    return call(plan_forward, layer, (x, residual, weight, bias, y, total), shape, eps, p, flags)


def norm_backward(dy, plus, x, weight, dx, dweight, dbias, kind, shape, eps, p, flags) -> bool:
    """The gradients of :func:`norm` into ``dx`` (``plus`` added), ``dweight`` and ``dbias``; None: unwanted."""
    layer, tensors = NORM_KINDS[kind] == "layer", (x, dy, weight, plus, dx, dweight, dbias)
    return call(plan_backward, layer, tensors, shape, eps, p, flags | native.FRESH)


def plan_forward(layer: bool, tensors, shape, eps, p, flags, low) -> Plan | None:
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
    alone = residual is None and bias is None and problem.k == problem.n and not problem.layer
    fresh = bool(flags & native.FRESH)
    found = _forward(problem, x.element_size(), aligned, warp_size, alone, fresh)
    if found is None:
        return None
    kernel, choice, programs, added = found
    given = {"ADD": residual is not None, "HAS_WEIGHT": weight is not None, "HAS_BIAS": bias is not None}
    run, integers = problem.launcher(kernel, tensors, x.dtype, choice, **given, **added), problem.integers()
    return lambda tensors, addresses: run(programs, 1, tensors, addresses, integers)


def _forward(
    problem: Problem, itemsize: int, aligned: bool, warp_size: int, alone: bool, fresh: bool
) -> tuple[Any, choices.Choice, int, dict[str, int]] | None:
    """The kernel of a forward pass, its choice, the number of programs, and the constants that it alone has."""
    stream = choices.stream(problem.n, problem.k, itemsize, aligned, warp_size)
    if stream is not None and fresh:  # in place, a program would write what others read
        pieces = -(-problem.n // stream.block)
        if problem.rows * pieces <= launch.INT32:
            added = {"PIECES": pieces, "HEAD": choices.HEAD}
            return forward_kernels.forward_stream_kernel, stream, problem.rows * pieces, added
    choice = choices.forward(problem.n, itemsize, aligned, warp_size, alone)
    if choice.programs:
        programs = choices.grid(choice, problem.rows, 1, launch.multiprocessors(problem.device))
        return forward_kernels.forward_persistent_kernel, choice, programs, {"STAGES": choice.stages}
    if choice.rest[0]:
        second, third = choice.rest
        if problem.layer:
            return None  # no kernel takes a mean over parts
        return parts_kernels.forward_parts_kernel, choice, problem.rows, {"SECOND": second, "THIRD": third}
    if choice.looped:
        return forward_kernels.forward_looped_kernel, choice, problem.rows, {"STAGES": choice.stages}
    return forward_kernels.forward_kernel, choice, -(-problem.rows // choice.rows), {}


def plan_backward(layer: bool, tensors, shape, eps, p, flags, low) -> Plan | None:
    x, dy, weight, plus, dx, dweight, dbias = tensors
    problem = Problem(layer, tensors, (0, 1, 3, 4), shape, eps, p, flags, low)
    half = x.element_size() == 2
    if not problem.served or not (dy.dtype == x.dtype or (half and dy.dtype == torch.float32)):
        return None
    if any(t is not None and t.dtype != x.dtype for t in (plus, dx)):
        return None
    if problem.rows == 0:
        return zero_sums(SUMS)
    partial = torch.empty(0, dtype=problem.compute)  # it gives its dtype
    given = (x, dy, weight, plus, dx, *(None if t is None else partial for t in (dweight, dbias)))
    found = _held(problem, given) or _looped(problem, given, partial)
    return None if found is None else with_finish(*found, problem, tensors, SUMS)


def _wanted(given: Sequence[Tensor | None]) -> dict[str, bool]:
    names = ("HAS_WEIGHT", "PLUS", "DX", "DWEIGHT", "DBIAS")
    return {name: t is not None for name, t in zip(names, given[2:], strict=True)}


def _held(problem: Problem, given: Sequence[Any]) -> tuple[Plan, int, int] | None:
    """The kernel for rows that fit into registers, how many programs it has, and the most that a head can have."""
    x, dy, *_ = given
    device, sums = x.get_device(), sum(t is not None for t in given[5:])
    warp_size, aligned = launch.target(device).warp_size, problem.bytes == choices.VECTOR
    choice = choices.backward(problem.n, dy.element_size(), problem.layer, sums, aligned, warp_size)
    if choice is None:
        return None
    ahead = sum(t.element_size() for t in (x, dy, given[3]) if t is not None)
    choice = choices.fitted(choice, ahead, launch.shared_memory(device))
    multiprocessors = launch.multiprocessors(device)
    programs = choices.grid(choice, problem.rows, problem.heads, multiprocessors)
    most = choices.most_programs(choice, problem.heads, multiprocessors)
    added = {"LEAF": choices.LEAF, "HOLD": choice.hold, "STAGES": choice.stages} | _wanted(given)
    run = problem.launcher(backward_kernels.backward_kernel, given, problem.compute, choice, **added)
    integers = problem.integers()
    return lambda tensors, addresses: run(programs, 1, tensors, addresses, integers), programs, most


def _looped(problem: Problem, given: Sequence[Any], like: Tensor) -> tuple[Plan, int, int] | None:
    """The two kernels for longer rows (pRMSNorm: three), how many programs a column block has, and a head's most.

    ``like`` has the dtype of their sums.
    """
    x, dy, weight, plus, dx, *_ = given
    device, sums = x.get_device(), sum(t is not None for t in given[5:])
    warp_size, aligned = launch.target(device).warp_size, problem.bytes == choices.VECTOR
    columns = choices.backward_columns(dy.element_size(), problem.layer, sums, aligned, warp_size)
    pieces, wanted = -(-problem.n // columns.block), _wanted(given)
    split = wanted["DX"] and choices.splits(problem.n, problem.k, pieces)
    multiprocessors = launch.multiprocessors(device)
    programs = choices.grid(columns, problem.rows, problem.heads, multiprocessors, pieces)
    most = choices.most_programs(columns, problem.heads, multiprocessors, pieces)
    if programs > choices.MOST_Y:
        return None

    def made(kernel: Any, tensors: Sequence[Any], choice: choices.Choice, **added: Any) -> launch.Launcher:
        return problem.launcher(kernel, tensors, problem.compute, choice, STAGES=choice.stages, **(wanted | added))

    rows_choice = choices.backward_rows(dy.element_size(), aligned, warp_size)
    first = made(long_backward_kernels.rows_kernel, (x, dy, weight, like), rows_choice, DX=wanted["DX"] and not split)
    leaf = choices.LEAF
    second = made(long_backward_kernels.columns_kernel, (*given, like, like), columns, LEAF=leaf, SPLIT=split)
    third = None
    if split:
        head, parts = choices.head(problem.k, warp_size), choices.power_of_two(pieces)
        tensors = (x, dy, weight, plus, dx, like, like)
        third = made(long_backward_kernels.head_kernel, tensors, head, PIECES=pieces, PARTS=parts)
    rows, integers, like = problem.rows, problem.integers(), like.to(x.device)
    found = -(-long_backward_kernels.FOUND * rows // choices.VECTOR) * choices.VECTOR  # what follows is aligned as well
    size = found * like.element_size()

    def run(tensors: Sequence[Tensor | None], addresses: Sequence[int]) -> None:
        buffer = like.new_empty(found + (pieces * rows if split else 0))
        at = buffer.data_ptr()
        more, places = (buffer, buffer[found:] if launch.INTERPRETED else buffer), (at, at + size)
        first(rows, 1, (*tensors[:3], buffer), (*addresses[:3], at), integers[:10])
        second(pieces, programs, (*tensors, *more), (*addresses, *places), integers)
        if third is not None:
            third(rows, 1, (*tensors[:5], *more), (*addresses[:5], *places), integers)

    return run, programs, most
