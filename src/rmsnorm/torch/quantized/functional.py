"""The quantised norms as functions of tensors: which way a call goes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.compiler import is_compiling

from rmsnorm.spec import check_spec, norm_spec
from rmsnorm.torch import checks
from rmsnorm.torch.dispatch import COMPOSITE, KERNEL, eager_way, forward_mode
from rmsnorm.torch.indirect import indirect
from rmsnorm.torch.operation import Tensors, checked_composite
from rmsnorm.torch.quantized.eager import QUANTIZED, forward
from rmsnorm.torch.quantized.spec import LARGEST, QuantizedSpec, quantized_spec


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
    return _quantized(rms_norm_quantized, {"input": input}, normalized_shape, weight, eps, dtype, p)


def add_rms_norm_quantized(
    input: Tensor,
    residual: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    dtype: torch.dtype = torch.int8,
    p: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The residual step of a pre-norm network: add, normalise and quantise, in one pass over memory.

    .. math:: s = \mathrm{input} + \mathrm{residual}, \qquad (q, \mathrm{scale}) = \mathrm{rms\_norm\_quantized}(s)

    s is rounded to the residual's dtype before it is normalised, so the results equal those of the two separate
    operations bit for bit.

    Args:
        input: (…, \*normalized_shape), the output of the sublayer; float16, bfloat16, float32 or float64; any strides.
        residual: the residual stream, of the input's shape and any floating dtype.
        normalized_shape, weight, eps, dtype, p: as in :func:`rms_norm_quantized`.

    The computation dtype is float32, or float64 for a residual in float64. No gradient is defined.

    Returns:
        (q, scale, s): q and scale as :func:`rms_norm_quantized` returns them; s in the residual's dtype, with the
        strides of ``torch.empty_like(residual)``.

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if an argument has a wrong value, if tensors do not fit each other, or if a gradient would be
            needed.
        NotImplementedError: for another ``dtype``, or an argument with a tangent.

    Source: one dynamic scale per token, as in Dettmers et al., "LLM.int8()" (2022), §2.1; inference engines on GPUs
    fuse it with the addition and the norm.

    Example:
        >>> add_rms_norm_quantized(torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 2.0]]), (2,))
        (tensor([[ 95, 127]], dtype=torch.int8), tensor([[0.0089]]), tensor([[3., 4.]]))
    """
    if residual is None:  # below, that is a norm without one
        raise TypeError("residual must be a torch.Tensor, got NoneType; rms_norm_quantized needs none")
    rows = {"input": input, "residual": residual}
    return _quantized(add_rms_norm_quantized, rows, normalized_shape, weight, eps, dtype, p)


def _quantized(
    function: Callable[..., Any],
    rows: dict[str, Tensor],
    normalized_shape: int | Sequence[int],
    weight: Tensor | None,
    eps: float | None,
    dtype: torch.dtype,
    p: float,
) -> Tensors:
    """(q, scale), and the sum if ``function`` takes a residual beside the input: what has rows."""
    name, given = function.__name__, (*rows.values(), weight)
    way = COMPOSITE if is_compiling() else eager_way(*given)
    if way != KERNEL:
        checks.check_no_gradient(name, *given)
    if way == COMPOSITE and forward_mode() and any(map(_has_tangent, given)):
        raise NotImplementedError(
            f"{name} has no derivative, but an argument has a tangent (jvp, dual numbers); use "
            "torch.autograd.forward_ad.unpack_dual(t).primal, or detach it within torch.func.jvp"
        )
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be torch.int8 or torch.float8_e4m3fn, got {dtype!r}")
    if dtype not in LARGEST:
        raise NotImplementedError(f"dtype must be torch.int8 or torch.float8_e4m3fn, got {dtype}")
    if way == COMPOSITE:
        results = indirect(function, rows, normalized_shape, weight=weight, eps=eps, dtype=dtype, p=p)
        if results is not None:
            return results
    check, join = (check_spec, QuantizedSpec) if is_compiling() else (norm_spec, quantized_spec)
    spec = join(check("rms", normalized_shape, eps, p), dtype)
    tensors = rows["input"], rows.get("residual"), weight
    results = checked_composite(QUANTIZED, spec, tensors) if way == COMPOSITE else forward(spec, tensors)
    return results if "residual" in rows else results[:2]


def _has_tangent(t: Any) -> bool:
    return isinstance(t, Tensor) and unpack_dual(t).tangent is not None


# ---- the ways of the plain norms ----
