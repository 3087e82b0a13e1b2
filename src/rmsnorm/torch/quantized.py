"""RMSNorm whose result is rounded to eight bits, with one scale a row, for the matrix product that follows."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.compiler import is_compiling

from rmsnorm.spec import check_spec
from rmsnorm.torch import checks, composite, eager
from rmsnorm.torch.bindings import FLAGS, kernels_of
from rmsnorm.torch.dispatch import Way, eager_way, forward_mode

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


def rms_norm_quantized(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    dtype: torch.dtype = torch.int8,
    p: float = 1.0,
) -> tuple[Tensor, Tensor]:
    r"""RMSNorm and symmetric quantisation of each row in one pass over memory.

    .. math:: y = \mathrm{rms\_norm}(x), \qquad \mathrm{scale} = \max_i |y_i| / M, \qquad
              q_i = \mathrm{round}(y_i / \mathrm{scale})

    M is 127 for int8 and 448 for float8_e4m3fn. Rounding is to the nearest, ties to even; ``q * scale`` is y within
    half a step.

    Args:
        input: x, (…, \*normalized_shape), float16, bfloat16, float32 or float64; any strides.
        normalized_shape: the last dimensions, of n elements together.
        weight: the gain, as in :func:`rms_norm`: of shape ``normalized_shape``, or one for each head.
        eps: inside the root; None: machine epsilon of the computation dtype (1.19e-7, or 2.22e-16 for float64).
        dtype: the dtype of q, ``torch.int8`` or ``torch.float8_e4m3fn``.
        p: the RMS is taken of this fraction of the elements, the first ones; 0 < p ≤ 1.

    The computation dtype is float32, or float64 for float64 inputs; y is not rounded to the input's dtype in between.
    If all of a row's y are zero, its scale and codes are 0. If a row's y is not finite, its scale is NaN and its codes
    are 0, so that q times scale is NaN. No gradient is defined.

    Returns:
        (q, scale): q of the input's shape; scale in float32, of that shape with 1 for each normalised dimension. Both
        are contiguous.

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if an argument has a wrong value, if tensors do not fit each other, or if a gradient would be
            needed.
        NotImplementedError: for another ``dtype``, or an argument with a tangent.

    Source: one dynamic scale per token, as in Dettmers et al., "LLM.int8()" (2022), §2.1.

    Example:
        >>> rms_norm_quantized(torch.tensor([[3.0, 4.0]]), (2,))
        (tensor([[ 95, 127]], dtype=torch.int8), tensor([[0.0089]]))
    """
    checks.check_no_gradient("rms_norm_quantized", input, weight)
    if forward_mode() and any(isinstance(t, Tensor) and unpack_dual(t).tangent is not None for t in (input, weight)):
        raise NotImplementedError(
            "rms_norm_quantized has no derivative, but an argument has a tangent (jvp, dual numbers); use "
            "torch.autograd.forward_ad.unpack_dual(t).primal, or detach it within torch.func.jvp"
        )
    if dtype not in LARGEST:
        raise NotImplementedError(f"dtype must be torch.int8 or torch.float8_e4m3fn, got {dtype}")
    spec = check_spec(normalized_shape, eps, p)
    shape, eps, p = spec.normalized_shape, spec.eps, spec.p
    dims = len(shape)
    checks.check_tensors(shape, input, weight, None)
    if not is_compiling() and eager_way(input, weight, None) != Way.COMPOSITE:
        q = torch.empty(input.shape, dtype=dtype, device=input.device)
        one_a_row = *input.shape[: input.dim() - dims], *(1,) * dims
        scale = torch.empty(one_a_row, dtype=torch.float32, device=input.device)
        x = eager.rows_contiguous(input, dims)
        if kernels_of(x).rms_norm_quantized(x, shape, weight, q, scale, eps, p, FLAGS):
            return q, scale
    return expression(input, shape, weight, eps, dtype=dtype, p=p)


def expression(
    input: Tensor, shape: tuple[int, ...], weight: Tensor | None, eps: float | None, *, dtype: torch.dtype, p: float
) -> tuple[Tensor, Tensor]:
    """:func:`rms_norm_quantized` in torch's own operations."""
    most = LARGEST[dtype]
    y = composite.rms_norm(input.to(composite.compute_dtype(input.dtype)), shape, weight, eps, p=p)
    checks.check_no_gradient("rms_norm_quantized", y)  # Dynamo does not say it of the argument of torch.func.grad
    one_a_row = *y.shape[: -len(shape)], *(1,) * len(shape)
    largest = y.abs().flatten(-len(shape)).amax(-1).reshape(one_a_row) if y.numel() else y.new_zeros(one_a_row)
    scale = torch.where(largest.isfinite(), largest, torch.nan).div(most).to(torch.float32)
    codes = torch.where((scale > 0) & scale.isfinite(), y / scale, 0.0).clamp(-most, most)
    codes = codes.round() if dtype == torch.int8 else codes.float()
    return codes.to(dtype, memory_format=torch.contiguous_format), scale
