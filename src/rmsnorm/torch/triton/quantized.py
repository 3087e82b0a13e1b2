"""rms_norm_quantized on the host."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rmsnorm import native
from rmsnorm.torch.triton import choices, launch, quantized_kernels
from rmsnorm.torch.triton.plans import Plan, Problem, call


def quantized(x, residual, weight, q, scale, total, shape, eps, p, flags) -> bool:
    """Codes of rms_norm(x) into ``q`` (int8 or float8_e4m3fn) and a row's step into ``scale``, both fresh.

    There is no kernel that adds a residual first.
    """
    if residual is not None:
        return False
    to_int8, codes = q.dtype == torch.int8, q.view(torch.int8)
    return call(_plan, to_int8, (x, weight, codes, scale), shape, eps, p, flags | native.FRESH)


def _plan(to_int8: bool, tensors, shape, eps, p, flags, low) -> Plan | None:
    x, weight, *_ = tensors
    # Rows are numbered as the dimensions are, which is how the scales lie.
    problem = Problem(False, tensors[:3], (0, 2), shape, eps, p, flags, low, ordered=True)
    if not problem.served:
        return None
    if problem.rows == 0:
        return lambda tensors, addresses: None
    aligned, warp_size = problem.bytes == choices.VECTOR, launch.target(x.get_device()).warp_size
    choice = choices.quantized(problem.n, x.element_size(), aligned, warp_size)
    kernel = quantized_kernels.quantized_looped_kernel if choice.looped else quantized_kernels.quantized_kernel
    run = problem.launcher(kernel, tensors, x.dtype, choice, INT8=to_int8, HAS_WEIGHT=weight is not None)
    programs, integers = -(-problem.rows // choice.rows), problem.integers()

    def launch_one(tensors: Sequence[Tensor | None], addresses: Sequence[int]) -> None:
        run(programs, 1, tensors, addresses, integers)

    return launch_one
