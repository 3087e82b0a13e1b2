"""RMSNorm, pRMSNorm and LayerNorm for NumPy arrays, with their backward passes, on the native kernels.

float16, float32, float64 and, with the package ``ml_dtypes``, bfloat16. Computation is in float32, or float64 for
float64 inputs, and is rounded once to the input's dtype. The work is shared among ``RMSNORM_NUM_THREADS`` threads
(default: the processors this process may use); a row's result does not depend on their number.
"""

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from rmsnorm.arrays import Array, Call, Gradients, as_rows, backward, eight_bit, floating, forward, quantized
from rmsnorm.spec import Axis, check_same

__all__ = [
    "add_rms_norm",
    "add_rms_norm_backward",
    "add_rms_norm_quantized",
    "layer_norm",
    "layer_norm_backward",
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_quantized",
]


def rms_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axis = -1,
    eps: float | None = None,
    p: float = 1.0,
    zero_centered: bool = False,
    out: Array | None = None,
) -> Array:
    r"""RMSNorm along ``axis``; with ``p`` < 1, pRMSNorm.

    .. math:: y_i = \frac{x_i}{\sqrt{\frac{1}{k} \sum_{j \le k} x_j^2 + \mathrm{eps}}} \, g_i + b_i, \qquad
              k = \lceil n p \rceil

    Args:
        x: any shape; float16, float32, float64 or, with the package ``ml_dtypes``, bfloat16.
        weight: the gain g, of the shape of x along ``axis`` and any floating dtype; None: 1. It may have one more
            dimension in front, a gain for each head: the size of x's last axis that is not normalised.
        bias: b, of any floating dtype and of the weight's shape (without a weight, of either shape above); None: 0.
        axis: the normalised axis or axes; several are taken together, in x's order.
        eps: inside the root; None: machine epsilon of the computation dtype.
        p: the RMS is taken of the first k = ⌈n·p⌉ elements; 0 < p ≤ 1.
        zero_centered: the gain is 1 + weight.
        out: where to write the result, an array of x's shape and dtype; it may be x itself.

    The computation dtype is float32, or float64 for float64 inputs, with one rounding at the end, to x's dtype.

    Returns:
        y, of x's shape and dtype (``out`` if given).

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if an argument has a wrong value or shape.

    Source: Zhang & Sennrich, "Root Mean Square Layer Normalization" (2019), §3 and §3.2.

    Example:
        >>> x = np.array([[3.0, 4.0]])
        >>> rms_norm(x).round(4)
        array([[0.8485, 1.1314]])
        >>> rms_norm(x, p=0.5).round(4)  # the RMS of the first element
        array([[1.    , 1.3333]])
    """
    return forward(Call.checked("rms", x, weight, bias, axis, eps, p, zero_centered), out)


def layer_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axis = -1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> Array:
    r"""LayerNorm along ``axis``, in the same kernels as :func:`rms_norm`.

    .. math:: y_i = \frac{x_i - \mu}{\sqrt{\frac{1}{n} \sum_j (x_j - \mu)^2 + \mathrm{eps}}} \, g_i + b_i, \qquad
              \mu = \frac{1}{n} \sum_j x_j

    Args:
        x, weight, bias, axis, eps, out: as in :func:`rms_norm`, and so are the dtypes.

    Returns:
        y, of x's shape and dtype (``out`` if given).

    Raises:
        TypeError, ValueError: as :func:`rms_norm`.

    Source: Ba, Kiros & Hinton, "Layer Normalization" (2016).

    Example:
        >>> layer_norm(np.array([[1.0, 3.0]])).round(4)
        array([[-1.,  1.]])
    """
    return forward(Call.checked("layer", x, weight, bias, axis, eps), out)


def add_rms_norm(
    x: ArrayLike,
    residual: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axis = -1,
    eps: float | None = None,
    p: float = 1.0,
    zero_centered: bool = False,
) -> tuple[Array, Array]:
    r"""The residual step of a pre-norm network: add, then normalise.

    .. math:: s = x + \mathrm{residual}, \qquad y = \mathrm{rms\_norm}(s)

    s is rounded to the residual's dtype before it is normalised, so the pair equals the two separate operations bit for
    bit. If x and residual differ in dtype, y is rounded to the residual's dtype and then to x's.

    Args:
        x: any shape, as in :func:`rms_norm`.
        residual: of x's shape and any floating dtype.
        weight, bias, axis, eps, p, zero_centered: as in :func:`rms_norm`.

    Returns:
        (y, s): y in x's dtype, s in the residual's.

    Raises:
        TypeError, ValueError: as :func:`rms_norm`.

    Source: the pre-norm block, e.g. Xiong et al., "On Layer Normalization in the Transformer Architecture" (2020).

    Example:
        >>> y, s = add_rms_norm(np.array([[1.0, 2.0]]), np.array([[2.0, 2.0]]))
        >>> y.round(4), s
        (array([[0.8485, 1.1314]]), array([[3., 4.]]))
    """
    x, residual = _summands(x, residual)
    if x.dtype != residual.dtype:
        total = _sum(x, residual)
        normed = rms_norm(total, weight, bias, axis=axis, eps=eps, p=p, zero_centered=zero_centered)
        return normed.astype(x.dtype), total
    call = Call.checked("rms", x, weight, bias, axis, eps, p, zero_centered)
    rows = as_rows(residual, call.axes)
    y, total = (np.empty(call.x.shape, call.x.dtype) for _ in range(2))
    call.run(y, rows, total)
    return call.back(y), call.back(total)


def rms_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    axis: Axis = -1,
    eps: float | None = None,
    p: float = 1.0,
    zero_centered: bool = False,
    bias: bool = False,
) -> Gradients:
    r"""The gradients of :func:`rms_norm`.

    .. math:: dx = \frac{u - m \odot \hat{x} \, \langle u, \hat{x} \rangle / k}{\mathrm{RMS}}, \qquad u = g \odot dy,
              \qquad dg = \sum dy \odot \hat{x}, \qquad db = \sum dy

    m is 1 for the first k elements and 0 for the others; the sums go over rows.

    Args:
        dy: the gradient of y, of x's shape.
        x, weight, axis, eps, p, zero_centered: what :func:`rms_norm` was called with, and so are the dtypes.
        bias: whether there was a bias, so that its gradient is returned.

    Returns:
        (dx, dweight, dbias): dx of x's dtype, the others of the weight's (without a weight, dbias has x's dtype); None
        for a parameter that was not there. dweight and dbias are summed in float32 over blocks of 32 rows and then in
        float64, in an order that does not depend on the number of threads.

    Raises:
        TypeError, ValueError: as :func:`rms_norm`.

    Source: Zhang & Sennrich, "Root Mean Square Layer Normalization" (2019), §4.2.

    Example:
        >>> x, weight = np.array([[3.0, 4.0]]), np.ones(2)
        >>> dx, dweight, dbias = rms_norm_backward(np.array([[1.0, 0.0]]), x, weight)
        >>> dx.round(4), dweight.round(4), dbias
        (array([[ 0.181 , -0.1358]]), array([0.8485, 0.    ]), None)
    """
    return backward(dy, Call.checked("rms", x, weight, None, axis, eps, p, zero_centered), bias)


def layer_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    axis: Axis = -1,
    eps: float = 1e-5,
    bias: bool = False,
) -> Gradients:
    r"""The gradients of :func:`layer_norm`.

    .. math:: dx = \frac{u - \overline{u} - \hat{x} \, \overline{u \odot \hat{x}}}{\sqrt{\sigma^2 + \mathrm{eps}}},
              \qquad u = g \odot dy, \qquad dg = \sum dy \odot \hat{x}, \qquad db = \sum dy

    A bar is the mean over a row; the sums go over rows.

    Args:
        dy, x, weight, axis, eps, bias: as in :func:`rms_norm_backward`, and so are the dtypes.

    Returns:
        (dx, dweight, dbias), as :func:`rms_norm_backward`.

    Raises:
        TypeError, ValueError: as :func:`rms_norm`.

    Source: Ba, Kiros & Hinton, "Layer Normalization" (2016).

    Example:
        >>> dx, _, dbias = layer_norm_backward(np.array([[1.0, 0.0, 0.0]]), np.array([[1.0, 2.0, 4.0]]), bias=True)
        >>> dx.round(4), dbias
        (array([[ 0.2291, -0.3436,  0.1145]]), array([1., 0., 0.]))
    """
    return backward(dy, Call.checked("layer", x, weight, None, axis, eps), bias)


def add_rms_norm_backward(
    dy: ArrayLike,
    dnew_residual: ArrayLike | None,
    new_residual: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    axis: Axis = -1,
    eps: float | None = None,
    p: float = 1.0,
    zero_centered: bool = False,
    bias: bool = False,
) -> Gradients:
    r"""The gradients of :func:`add_rms_norm`.

    .. math:: ds = \mathrm{rms\_norm\backward}(dy, s) + \mathrm{dnew\_residual}

    ds is the gradient of x and of residual alike.

    Args:
        dy: the gradient of the first result.
        dnew_residual: the gradient of the second result, the sum; None: 0.
        new_residual: that sum, s.
        weight, axis, eps, p, zero_centered, bias: as in :func:`rms_norm_backward`, and so are the dtypes.

    Returns:
        (ds, dweight, dbias), as :func:`rms_norm_backward`.

    Raises:
        TypeError, ValueError: as :func:`rms_norm`.

    Source: Zhang & Sennrich, "Root Mean Square Layer Normalization" (2019), §4.2.

    Example:
        >>> s = np.array([[3.0, 4.0]])
        >>> ds, _, _ = add_rms_norm_backward(np.array([[1.0, 0.0]]), np.ones((1, 2)), s)
        >>> ds.round(4)
        array([[1.181 , 0.8642]])
    """
    call = Call.checked("rms", new_residual, weight, None, axis, eps, p, zero_centered, "new_residual")
    return backward(dy, call, bias, dnew_residual, "new_residual")


def rms_norm_quantized(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    axis: Axis = -1,
    eps: float | None = None,
    dtype: DTypeLike = np.int8,
    p: float = 1.0,
) -> tuple[Array, Array]:
    r"""RMSNorm and symmetric quantisation of each row in one pass over memory.

    .. math:: y = \mathrm{rms\_norm}(x), \qquad \mathrm{scale} = \max_i |y_i| / M, \qquad
              q_i = \mathrm{round}(y_i / \mathrm{scale})

    M is 127 for int8 and 448 for float8_e4m3fn. Rounding is to the nearest, ties to even; ``q * scale`` is y within
    half a step.

    Args:
        x, weight, axis, eps, p: as in :func:`rms_norm`, and so are the dtypes.
        dtype: the dtype of q, int8 or, of the package ``ml_dtypes``, float8_e4m3fn.

    y is not rounded to x's dtype in between. If all of a row's y are zero, its scale and codes are 0. If a row's y is
    not finite, its scale is NaN and its codes are 0.

    Returns:
        (q, scale): q of x's shape; scale in float32, of that shape with 1 for each normalised axis.

    Raises:
        TypeError, ValueError: as :func:`rms_norm`.
        NotImplementedError: for another ``dtype``.

    Source: one dynamic scale per token, as in Dettmers et al., "LLM.int8()" (2022), §2.1.

    Example:
        >>> q, scale = rms_norm_quantized(np.array([[3.0, 4.0]]))
        >>> q, scale.round(4)
        (array([[ 95, 127]], dtype=int8), array([[0.0089]], dtype=float32))
    """
    call = Call.checked("rms", x, weight, None, axis, eps, p)
    q, scale, _ = quantized(call, None, eight_bit(dtype))
    return q, scale


def add_rms_norm_quantized(
    x: ArrayLike,
    residual: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    axis: Axis = -1,
    eps: float | None = None,
    dtype: DTypeLike = np.int8,
    p: float = 1.0,
) -> tuple[Array, Array, Array]:
    r"""The residual step of a pre-norm network: add, normalise and quantise, in one pass over memory.

    .. math:: s = x + \mathrm{residual}, \qquad (q, \mathrm{scale}) = \mathrm{rms\_norm\_quantized}(s)

    s is rounded to the residual's dtype before it is normalised, so the results equal those of the two separate
    operations bit for bit.

    Args:
        x: any shape, as in :func:`rms_norm`.
        residual: of x's shape and any floating dtype.
        weight, axis, eps, dtype, p: as in :func:`rms_norm_quantized`, and so are the dtypes.

    Returns:
        (q, scale, s): q and scale as :func:`rms_norm_quantized` returns them; s in the residual's dtype.

    Raises:
        TypeError, ValueError: as :func:`rms_norm`.
        NotImplementedError: for another ``dtype``.

    Source: one dynamic scale per token, as in Dettmers et al., "LLM.int8()" (2022), §2.1.

    Example:
        >>> q, scale, s = add_rms_norm_quantized(np.array([[1.0, 2.0]]), np.array([[2.0, 2.0]]))
        >>> q, scale.round(4), s
        (array([[ 95, 127]], dtype=int8), array([[0.0089]], dtype=float32), array([[3., 4.]]))
    """
    x, residual = _summands(x, residual)
    alike = x.dtype == residual.dtype
    call = Call.checked("rms", x if alike else _sum(x, residual), weight, None, axis, eps, p)
    q, scale, total = quantized(call, residual if alike else None, eight_bit(dtype))
    return q, scale, call.back(call.x) if total is None else total


def _summands(x: ArrayLike, residual: ArrayLike) -> tuple[Array, Array]:
    x, residual = floating("x", x), floating("residual", residual)
    check_same("residual", residual.shape, "x", x.shape, "shape")
    return x, residual


def _sum(x: Array, residual: Array) -> Array:
    """In the wider computation dtype, rounded to the residual's."""
    wide = np.float64 if np.float64 in (x.dtype, residual.dtype) else np.float32
    return (x.astype(wide) + residual.astype(wide)).astype(residual.dtype)
