"""The plain norms as functions of tensors, and where their ways part (:mod:`~rmsnorm.torch.dispatch`).

The other families' functions lie in their folders; all public functions have a name here.

- In a graph that is being captured: one operator, or the composite. Extents may be symbols there, so no spec is kept.
- Else the C++ calls of nodes.cpp where they were built; they decline what is not usual.
- Else the kernels, within an autograd node if a gradient may be asked for; or the composite.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.compiler import is_compiling

from rmsnorm.spec import NormSpec, check_flag, check_spec, norm_spec
from rmsnorm.torch import checks
from rmsnorm.torch.dispatch import AUTOGRAD, COMPOSITE, KERNEL, OPERATOR, eager_way, graph_way
from rmsnorm.torch.gated.functional import rms_norm_gated as rms_norm_gated
from rmsnorm.torch.indirect import indirect
from rmsnorm.torch.norm.composite import in_float32
from rmsnorm.torch.norm.eager import NORM, forward, forward_inplace, forward_into, nodes, recorded_norm
from rmsnorm.torch.operation import checked_composite, extents, run
from rmsnorm.torch.quantized.functional import add_rms_norm_quantized as add_rms_norm_quantized
from rmsnorm.torch.quantized.functional import rms_norm_quantized as rms_norm_quantized
from rmsnorm.torch.rotary.functional import rms_norm_rotary as rms_norm_rotary

_ops = torch.ops.rmsnorm


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
    compiling = is_compiling()
    if compiling:
        way = graph_way(input, writes=out is not None, in_float32=_is_in_float32(normalized_shape, eps, p))
        if way == OPERATOR:
            y = _ops.rms_norm(input, extents(normalized_shape), weight, bias, eps, p, zero_centered, casting)
            return _written(y, out, input, weight, bias)
    else:
        if nodes:
            y = nodes.rms_norm(input, normalized_shape, weight, bias, eps, p, zero_centered, casting, out)
            if y is not None:
                return y
        way = eager_way(input, weight, bias)
    if way == COMPOSITE:
        options = {"eps": eps, "bias": bias, "p": p, "zero_centered": zero_centered, "casting": casting, "out": out}
        y = indirect(rms_norm, {"input": input}, normalized_shape, weight=weight, **options)
        if y is not None:
            return y
    spec = (check_spec if compiling else norm_spec)("rms", normalized_shape, eps, p, zero_centered, casting)
    if way == COMPOSITE or out is not None:
        return _others(way, spec, input, weight, bias, out)
    if way == AUTOGRAD:
        return recorded_norm(spec, input, None, weight, bias)
    return run(NORM, spec, (input, None, weight, bias))[0]


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
    compiling = is_compiling()
    if compiling:
        way = graph_way(input, writes=out is not None)
        if way == OPERATOR:
            y = _ops.layer_norm(input, extents(normalized_shape), weight, bias, eps)
            return _written(y, out, input, weight, bias)
    else:
        if nodes:
            y = nodes.layer_norm(input, normalized_shape, weight, bias, eps, out)
            if y is not None:
                return y
        way = eager_way(input, weight, bias)
    if way == COMPOSITE:
        y = indirect(layer_norm, {"input": input}, normalized_shape, weight=weight, bias=bias, eps=eps, out=out)
        if y is not None:
            return y
    spec = (check_spec if compiling else norm_spec)("layer", normalized_shape, eps)
    if way == COMPOSITE or out is not None:
        return _others(way, spec, input, weight, bias, out)
    if way == AUTOGRAD:
        return recorded_norm(spec, input, None, weight, bias)
    return run(NORM, spec, (input, None, weight, bias))[0]


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
    if residual is None:  # below, that is a norm without one
        raise TypeError("residual must be a torch.Tensor, got NoneType; rms_norm needs none")
    if inplace is not False and check_flag("inplace", inplace):
        return _add_inplace(input, residual, normalized_shape, weight, bias, eps, p, zero_centered, casting)
    tensors = input, residual, weight, bias
    compiling = is_compiling()
    if compiling:
        way = graph_way(input, residual, in_float32=_is_in_float32(normalized_shape, eps, p))
        if way == OPERATOR:
            shape = extents(normalized_shape)
            return _ops.add_rms_norm(input, residual, shape, weight, bias, eps, p, zero_centered, casting)
    else:
        if nodes:
            pair = nodes.add_rms_norm(input, residual, normalized_shape, weight, bias, eps, p, zero_centered, casting)
            if pair is not None:
                return pair
        way = eager_way(*tensors)
    if way == COMPOSITE:
        options = {"eps": eps, "bias": bias, "p": p, "zero_centered": zero_centered, "casting": casting}
        rows = {"input": input, "residual": residual}
        pair = indirect(add_rms_norm, rows, normalized_shape, weight=weight, **options)
        if pair is not None:
            return pair
    spec = (check_spec if compiling else norm_spec)("rms", normalized_shape, eps, p, zero_centered, casting)
    if way == AUTOGRAD:
        return recorded_norm(spec, *tensors)
    return forward(spec, tensors) if way == KERNEL else checked_composite(NORM, spec, tensors)


def _others(
    way: int, spec: NormSpec, input: Tensor, weight: Tensor | None, bias: Tensor | None, out: Tensor | None
) -> Tensor:
    """All but the usual calls of a kernel, which skip this."""
    if way == COMPOSITE:
        y, _ = checked_composite(NORM, spec, (input, None, weight, bias))
        return _written(y, out, input, weight, bias)
    assert out is not None
    checks.check_writable(out, way == AUTOGRAD)
    return _touched(forward_into(spec, input, weight, bias, out))


def _add_inplace(input, residual, normalized_shape, weight, bias, *how):
    checks.check_no_gradient("inplace=True", input, residual, weight, bias)
    checks.check_inference("input", input)
    checks.check_inference("residual", residual)
    options = {"weight": weight, "bias": bias, **dict(zip(("eps", "p", "zero_centered", "casting"), how, strict=True))}
    if is_compiling() or eager_way(input, residual, weight, bias) == COMPOSITE:
        rows = {"input": input, "residual": residual}
        pair = indirect(add_rms_norm, rows, normalized_shape, **options, inplace=True)
        if pair is not None:
            return pair
    elif forward_inplace(norm_spec("rms", normalized_shape, *how), input, residual, weight, bias):
        return _touched(input), _touched(residual)
    if is_compiling() and graph_way(input, residual, writes=True) == OPERATOR:
        y, total = _ops.add_rms_norm(input, residual, extents(normalized_shape), weight, bias, *how)
    else:
        y, total = add_rms_norm(input, residual, normalized_shape, **options)
    checks.check_inplace(input, residual, y.dtype, weight, bias)
    return input.copy_(y), residual.copy_(total)


def _is_in_float32(normalized_shape: int | Sequence[int], eps: float | None, p: float) -> bool:
    """Of arguments that have not been checked."""
    if p != 1 or not isinstance(eps, float | int | None) or not isinstance(normalized_shape, int | list | tuple):
        return False
    shape = extents(normalized_shape)
    return all(isinstance(n, int) for n in shape) and in_float32(math.prod(shape), eps)


def _written(y: Tensor, out: Tensor | None, input: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """``y``, or ``out`` with it."""
    if out is None:
        return y
    checks.check_writable(out, torch.is_grad_enabled() and y.requires_grad)
    checks.check_out(out, y.dtype, input, weight, bias)
    return out.copy_(y)


def _touched(out: Tensor) -> Tensor:
    """``out``, its version counted up as by every in-place operation: autograd must see what a kernel has written."""
    if not out.is_inference():
        torch.autograd.graph.increment_version(out)
    return out
