"""rms_norm_gated and its gradients on the host. A group of elements is a row whose gain is that of a head."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rmsnorm import native
from rmsnorm.spec import check_groups, check_shape
from rmsnorm.torch.triton import choices, gated_kernels, launch, layout
from rmsnorm.torch.triton.plans import Plan, Problem, call, with_finish, zero_sums

SUMS = 6  # where dweight is among the tensors of a backward call


def gated(x, gate, weight, y, shape, eps, p, groups, norm_first, flags) -> bool:
    """rms_norm(x ⊙ silu(gate)) ⊙ g, or with ``norm_first`` rms_norm(x) ⊙ g ⊙ silu(gate), into ``y``."""
    tensors = _grouped((x, gate, y), (weight,), shape, groups)
    if tensors is None:
        return False
    (x, gate, y), (weight,), own = tensors
    return call(_plan_forward, norm_first, (x, gate, weight, None, y), own, eps, p, flags)


def gated_backward(dy, x, gate, weight, dx, dz, dweight, shape, eps, p, groups, norm_first, flags) -> bool:
    """The gradients of :func:`gated` into ``dx``, ``dz`` and, unless None, ``dweight``."""
    tensors = _grouped((dy, x, gate, dx, dz), (weight, dweight), shape, groups)
    if tensors is None:
        return False
    (dy, x, gate, dx, dz), (weight, dweight), own = tensors
    flags |= native.FRESH
    return call(_plan_backward, norm_first, (x, gate, weight, dy, dx, dz, dweight), own, eps, p, flags)


def _grouped(rows: Sequence[Tensor], parameters: Sequence[Tensor | None], shape: Any, groups: Any) -> Any:
    """Both as (…, groups, n / groups), and the shape of such a row; None if the kernels do not serve them."""
    try:
        shape = check_shape(shape)
        n = math.prod(shape)
        groups = check_groups(groups, n)
    except (TypeError, ValueError):
        return None
    if any(t is not None and (t.shape != shape or not t.is_contiguous()) for t in parameters):
        return None
    for t in rows:
        outer = t.dim() - len(shape)
        if outer < 0 or t.shape[outer:] != shape or not layout.contiguous(shape, t.stride()[outer:]):
            return None
    if groups == 1:
        return rows, parameters, shape
    own = n // groups
    return (
        [t.view(*t.shape[: t.dim() - len(shape)], groups, own) for t in rows],
        [None if t is None else t.view(groups, own) for t in parameters],
        (own,),
    )


def _plan_forward(norm_first: bool, tensors, shape, eps, p, flags, low) -> Plan | None:
    x, gate, weight, _, y = tensors
    problem = Problem(False, tensors, (0, 1, 4), shape, eps, p, flags, low)
    if not problem.served or any(t.dtype != x.dtype for t in (gate, y)):
        return None
    if problem.rows == 0:
        return lambda tensors, addresses: None
    choice = choices.gated_forward(problem.n, x.element_size(), launch.target(x.get_device()).warp_size)
    if choice is None:
        return None
    given = x, gate, weight, y
    run = problem.launcher(
        gated_kernels.gated_kernel,
        given,
        x.dtype,
        choice,
        NORM_FIRST=norm_first,
        HAS_WEIGHT=weight is not None,
    )
    programs, integers = -(-problem.rows // choice.rows), problem.integers()

    def launch_one(tensors: Sequence[Tensor | None], addresses: Sequence[int]) -> None:
        run(programs, 1, (*tensors[:3], tensors[4]), (*addresses[:3], addresses[4]), integers)

    return launch_one


def _plan_backward(norm_first: bool, tensors, shape, eps, p, flags, low) -> Plan | None:
    x, gate, weight, dy, dx, dz, dweight = tensors
    problem = Problem(False, tensors, (0, 1, 3, 4, 5), shape, eps, p, flags, low)
    if not problem.served or any(t.dtype != x.dtype for t in (gate, dy, dx, dz)):
        return None
    if problem.rows == 0:
        return zero_sums(SUMS)
    device = x.get_device()
    warp_size = launch.target(device).warp_size
    choice = choices.gated_backward(problem.n, x.element_size(), warp_size)
    if choice is None:
        return None
    multiprocessors = launch.multiprocessors(device)
    programs = choices.grid(choice, problem.rows, problem.heads, multiprocessors)
    most = choices.most_programs(choice, problem.heads, multiprocessors)
    partial = torch.empty(0, dtype=problem.compute)  # it gives its dtype
    run = problem.launcher(
        gated_kernels.gated_backward_kernel,
        (*tensors[:6], None if dweight is None else partial),
        problem.compute,
        choice,
        NORM_FIRST=norm_first,
        HAS_WEIGHT=weight is not None,
        DWEIGHT=dweight is not None,
        LEAF=choices.LEAF,
        HOLD=choice.hold,
        STAGES=choice.stages,
    )
    integers = problem.integers()

    def launch_one(tensors: Sequence[Tensor | None], addresses: Sequence[int]) -> None:
        run(programs, 1, tensors, addresses, integers)

    return with_finish(launch_one, programs, most, problem, tensors, SUMS)
