"""The public functions, and which way a call goes.

- ordinary tensors, eager: the C++ calls of nodes.cpp where they were built, else :mod:`~rmsnorm.torch.eager`,
  straight to the kernels;
- under ``torch.compile`` and ``torch.export``, on a CPU: the operators of :mod:`~rmsnorm.torch.ops`;
- everything else (other devices, transforms, subclasses, fake tensors): :mod:`~rmsnorm.torch.composite`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.compiler import is_compiling

from rmsnorm.torch import checks, composite, eager, ops
from rmsnorm.torch.dispatch import Way, eager_way, graph_way
from rmsnorm.torch.eager import nodes


def rms_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    bias: Tensor | None = None,
    p: float = 1.0,
    zero_centered: bool = False,
    casting: str = "once",
    out: Tensor | None = None,
) -> Tensor:
    r"""RMSNorm over the last dimensions; with ``p`` < 1, pRMSNorm.

    .. math:: y_i = \frac{x_i}{\sqrt{\frac{1}{k} \sum_{j \le k} x_j^2 + \mathrm{eps}}} \, g_i + b_i, \qquad
              k = \lceil n p \rceil

    Takes the arguments of :func:`torch.nn.functional.rms_norm` in the same positions.

    Args:
        input: x, (…, \*normalized_shape), float16, bfloat16, float32 or float64; any strides.
        normalized_shape: the last dimensions, of n elements together.
        weight: the gain g, of shape ``normalized_shape`` and any floating dtype; None: 1. For an input of shape
            (…, heads, \*normalized_shape) it may have the shape (heads, \*normalized_shape): one gain for each head
            (QK-norm).
        eps: inside the root, finite and not negative (torch accepts negative values, whose root may be NaN); None:
            machine epsilon of the computation dtype (1.19e-7, or 2.22e-16 for float64).
        bias: b, of any floating dtype and of the weight's shape (without a weight, of either shape above); None: 0.
        p: the RMS is taken of the first k = ⌈n·p⌉ elements, in row-major order; 0 < p ≤ 1.
        zero_centered: the gain is 1 + weight (Gemma, Qwen3-Next).
        casting: ``"once"``: x̂·g + b is computed in the computation dtype and rounded once, to the input's dtype.
            ``"llama"``: x̂ is rounded to the input's dtype *before* the gain, as in Hugging Face's Llama; the result has
            the dtype that promotion with weight and bias gives.
        out: where to write the result; not differentiable. It needs the result's shape, dtype and device, and may be
            ``input`` itself.

    The computation dtype is float32, or float64 for float64 inputs. A row's result depends on that row only. For finite
    rows the statistic does not overflow or underflow; NaN stays in its row. Derivatives of every order, forward mode
    and ``torch.func`` transforms work.

    Returns:
        y, of the input's shape and dtype (with ``casting="llama"`` of the promoted dtype), with the strides of
        ``torch.empty_like(input)``.

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if an argument has a wrong value, or if tensors do not fit each other; the latter error is a
            ``RuntimeError`` too, as in torch.

    Source: Zhang & Sennrich, "Root Mean Square Layer Normalization" (2019), §3 and §3.2.

    Example:
        >>> x = torch.tensor([[3.0, 4.0]])
        >>> rms_norm(x, (2,))
        tensor([[0.8485, 1.1314]])
        >>> rms_norm(x, (2,), p=0.5)  # the RMS of the first element
        tensor([[1.0000, 1.3333]])
    """
    if is_compiling():
        serves = ops if graph_way(input) == Way.OPERATOR else composite
        y = serves.rms_norm(
            input, normalized_shape, weight, eps, bias=bias, p=p, zero_centered=zero_centered, casting=casting
        )
        return _finish(y, out, input, weight, bias)
    if nodes:
        y = nodes.rms_norm(input, normalized_shape, weight, bias, eps, p, zero_centered, casting, out)
        if y is not None:
            return y
    way = eager_way(input, weight, bias)
    if way == Way.KERNEL and out is None:
        return eager.rms_norm(input, normalized_shape, weight, bias, eps, p, zero_centered, casting)
    how = (eps, p, zero_centered, casting)
    if way and out is not None:
        checks.check_writable(out, way == Way.AUTOGRAD)
        return _touched(eager.rms_norm(input, normalized_shape, weight, bias, *how, out))
    if way:
        return eager.RMSNormFunction.apply(input, normalized_shape, weight, bias, *how)
    y = composite.rms_norm(
        input, normalized_shape, weight, eps, bias=bias, p=p, zero_centered=zero_centered, casting=casting
    )
    return _finish(y, out, input, weight, bias)


def layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float | None = 1e-5,
    *,
    out: Tensor | None = None,
) -> Tensor:
    r"""LayerNorm over the last dimensions, in the same kernels as :func:`rms_norm`, for a fair comparison.

    .. math:: y_i = \frac{x_i - \mu}{\sqrt{\frac{1}{n} \sum_j (x_j - \mu)^2 + \mathrm{eps}}} \, g_i + b_i, \qquad
              \mu = \frac{1}{n} \sum_j x_j

    Takes the arguments of :func:`torch.nn.functional.layer_norm` in the same positions.

    Args:
        input: x, (…, \*normalized_shape), float16, bfloat16, float32 or float64; any strides.
        normalized_shape: the last dimensions, of n elements together.
        weight: the gain g, of shape ``normalized_shape`` or, one for each head, (heads, \*normalized_shape), and of any
            floating dtype; None: 1.
        bias: b, of the weight's shape and any floating dtype; None: 0.
        eps: inside the root, finite and not negative; None: machine epsilon of the computation dtype.
        out: where to write the result, as in :func:`rms_norm`.

    The computation dtype is float32, or float64 for float64 inputs, with one rounding at the end, to the input's dtype.
    The mean is corrected for its own rounding, so rows far from zero lose no more than the last place of their input.

    Returns:
        y, of the input's shape and dtype, with the strides of ``torch.empty_like(input)``.

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if an argument has a wrong value, or if tensors do not fit each other; the latter error is a
            ``RuntimeError`` too, as in torch.

    Source: Ba, Kiros & Hinton, "Layer Normalization" (2016).

    Example:
        >>> layer_norm(torch.tensor([[1.0, 3.0]]), (2,))
        tensor([[-1.0000,  1.0000]])
    """
    if is_compiling():
        serves = ops if graph_way(input) == Way.OPERATOR else composite
        return _finish(serves.layer_norm(input, normalized_shape, weight, bias, eps), out, input, weight, bias)
    if nodes:
        y = nodes.layer_norm(input, normalized_shape, weight, bias, eps, out)
        if y is not None:
            return y
    way = eager_way(input, weight, bias)
    if way == Way.KERNEL and out is None:
        return eager.layer_norm(input, normalized_shape, weight, bias, eps)
    if way and out is not None:
        checks.check_writable(out, way == Way.AUTOGRAD)
        return _touched(eager.layer_norm(input, normalized_shape, weight, bias, eps, out))
    if way:
        return eager.LayerNormFunction.apply(input, normalized_shape, weight, bias, eps)
    return _finish(composite.layer_norm(input, normalized_shape, weight, bias, eps), out, input, weight, bias)


def add_rms_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    bias: Tensor | None = None,
    p: float = 1.0,
    zero_centered: bool = False,
    casting: str = "once",
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""The residual step of a pre-norm network: add, then normalise, in one pass over memory.

    .. math:: s = \mathrm{input} + \mathrm{residual}, \qquad \mathrm{normed} = \mathrm{rms\_norm}(s)

    s is rounded to the residual's dtype before it is normalised, so the pair equals the two separate operations bit for
    bit. If input and residual differ in dtype, normed is rounded to the residual's dtype and then to the input's.

    Args:
        input: (…, \*normalized_shape), the output of the sublayer.
        residual: the residual stream, of the input's shape and any floating dtype.
        normalized_shape, weight, eps, bias, p, zero_centered, casting: as in :func:`rms_norm`.
        inplace: write normed into ``input`` and s into ``residual``, as inference engines do. The bits are the same,
            but the call is not differentiable. The two tensors, weight and bias must not share memory.

    Returns:
        (normed, s): normed in the input's dtype, s in the residual's; with ``inplace`` these are the tensors ``input``
        and ``residual`` themselves.

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if an argument has a wrong value, if tensors do not fit each other, or if ``inplace`` would need a
            gradient.

    Source: the pre-norm block, e.g. Xiong et al., "On Layer Normalization in the Transformer Architecture" (2020).

    Example:
        >>> normed, stream = add_rms_norm(torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 2.0]]), (2,))
        >>> normed, stream
        (tensor([[0.8485, 1.1314]]), tensor([[3., 4.]]))
    """
    if inplace:
        return _add_rms_norm_inplace(
            input, residual, normalized_shape, weight, eps, bias=bias, p=p, zero_centered=zero_centered, casting=casting
        )
    if is_compiling():
        serves = ops if graph_way(input) == Way.OPERATOR else composite
        return serves.add_rms_norm(
            input, residual, normalized_shape, weight, eps, bias=bias, p=p, zero_centered=zero_centered, casting=casting
        )
    if nodes:
        pair = nodes.add_rms_norm(input, residual, normalized_shape, weight, bias, eps, p, zero_centered, casting)
        if pair is not None:
            return pair
    how = (eps, p, zero_centered, casting)
    ways = eager_way(input, weight, bias), eager_way(residual, None, None)
    if Way.COMPOSITE not in ways:
        if Way.AUTOGRAD in ways:
            return eager.AddRMSNormFunction.apply(input, residual, normalized_shape, weight, bias, *how)
        return eager.add_rms_norm(input, residual, normalized_shape, weight, bias, *how)
    return composite.add_rms_norm(
        input, residual, normalized_shape, weight, eps, bias=bias, p=p, zero_centered=zero_centered, casting=casting
    )


def _add_rms_norm_inplace(input, residual, normalized_shape, weight, eps, **options):
    checks.check_no_gradient("inplace=True", input, residual, weight, options["bias"])
    checks.check_inference("input", input)
    checks.check_inference("residual", residual)
    plain = not is_compiling() and Way.COMPOSITE not in (
        eager_way(input, weight, options["bias"]),
        eager_way(residual, None, None),
    )
    if plain and eager.add_rms_norm_inplace(input, residual, normalized_shape, weight, eps=eps, **options):
        return _touched(input), _touched(residual)
    normed, new_residual = add_rms_norm(input, residual, normalized_shape, weight, eps, **options)
    checks.check_inplace(input, residual, normed.dtype, weight, options["bias"])
    return input.copy_(normed), residual.copy_(new_residual)


def _finish(y: Tensor, out: Tensor | None, input: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if out is None:
        return y
    checks.check_writable(out, torch.is_grad_enabled() and y.requires_grad)
    checks.check_out(out, y.dtype, input, weight, bias)
    return out.copy_(y)


def _touched(out: Tensor) -> Tensor:
    """``out``, with its version counted up as every in-place operation does: autograd must see the kernels' writing."""
    if not out.is_inference():
        torch.autograd.graph.increment_version(out)
    return out
