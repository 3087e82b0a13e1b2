"""RMSNorm, pRMSNorm and LayerNorm for NumPy arrays, with their backward passes, on the native kernels.

float16, float32, float64 and, with the package ``ml_dtypes``, bfloat16. Computation is in float32, or float64 for
float64 inputs, and is rounded once to the input's dtype. The work is shared among ``RMSNORM_NUM_THREADS`` threads
(default: the processors this process may use); a row's result does not depend on their number.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmsnorm import native
from rmsnorm.native.codes import NORM_KINDS
from rmsnorm.spec import (
    FLOATING,
    Axis,
    NormSpec,
    check_no_self_overlap,
    check_parameter,
    check_same,
    norm_spec,
    normalized_axes,
)

__all__ = [
    "add_rms_norm",
    "add_rms_norm_backward",
    "layer_norm",
    "layer_norm_backward",
    "rms_norm",
    "rms_norm_backward",
]

Array = NDArray[Any]
Gradients = tuple[Array, Array | None, Array | None]
_DTYPES = {name: code for code, name in enumerate(native.DTYPES)}


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
    return _forward(_Call.checked("rms", x, weight, bias, axis, eps, p, zero_centered), out)


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
    return _forward(_Call.checked("layer", x, weight, bias, axis, eps), out)


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
    x, residual = _floating("x", x), _floating("residual", residual)
    check_same("residual", residual.shape, "x", x.shape, "shape")
    if x.dtype != residual.dtype:
        wide = np.float64 if np.float64 in (x.dtype, residual.dtype) else np.float32
        total = (x.astype(wide) + residual.astype(wide)).astype(residual.dtype)
        normed = rms_norm(total, weight, bias, axis=axis, eps=eps, p=p, zero_centered=zero_centered)
        return normed.astype(x.dtype), total
    call = _Call.checked("rms", x, weight, bias, axis, eps, p, zero_centered)
    rows = _rows(residual, call.axes)
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
    return _backward(dy, _Call.checked("rms", x, weight, None, axis, eps, p, zero_centered), bias)


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
    return _backward(dy, _Call.checked("layer", x, weight, None, axis, eps), bias)


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

    .. math:: ds = \mathrm{rms\_norm\_backward}(dy, s) + \mathrm{dnew\_residual}

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
    call = _Call.checked("rms", new_residual, weight, None, axis, eps, p, zero_centered, "new_residual")
    return _backward(dy, call, bias, dnew_residual, "new_residual")


class _Call(NamedTuple):
    """Checked arguments in the layout of the kernels: the normalised axes last and together in memory."""

    x: Array
    weight: Array | None
    bias: Array | None
    axes: tuple[int, ...]
    spec: NormSpec

    @classmethod
    def checked(
        cls,
        kind: str,
        x: ArrayLike,
        weight: ArrayLike | None,
        bias: ArrayLike | None,
        axis: Axis,
        eps: float | None,
        p: float = 1.0,
        zero_centered: bool = False,
        name_of_x: str = "x",
    ) -> "_Call":
        x = _floating(name_of_x, x)
        axes = normalized_axes(axis, x.ndim)
        spec = norm_spec(kind, tuple(x.shape[a] for a in axes), eps, p, zero_centered)
        rows = _rows(x, axes)
        heads = rows.shape[-len(axes) - 1] if rows.ndim > len(axes) else None
        for name, value in (("weight", weight), ("bias", bias)):
            if value is not None:
                value = _floating(name, value)
                check_parameter(name, value.shape, _name(value.dtype), spec.normalized_shape, heads)
        weight, bias = (None if v is None else _native(np.asarray(v)) for v in (weight, bias))
        if weight is not None and bias is not None:
            check_same("bias", bias.shape, "weight", weight.shape, "shape")
        return cls(rows, weight, bias, axes, spec)

    def run(self, y: Array, residual: Array | None = None, total: Array | None = None) -> None:
        """The forward kernel into ``y``, an array like x; with a residual the sum into ``total``, and its norm."""
        self._do(native.kernels.norm, self.x, residual, self.weight, self.bias, y, total)

    def run_backward(
        self, dy: Array, plus: Array | None, dx: Array, dweight: Array | None, dbias: Array | None
    ) -> None:
        """The backward kernel: dx + plus, and the gradients of gain and bias that are wanted."""
        self._do(native.kernels.norm_backward, dy, plus, self.x, self.weight, dx, dweight, dbias)

    def writes(self, out: Array) -> bool:
        """Whether the forward kernel wrote ``out``; it declines what does not fit x and what lies otherwise."""
        if out.ndim != self.x.ndim or out.dtype != self.x.dtype:
            return False
        rows = _moved(out, self.axes)
        if rows.dtype not in _OWN_DTYPES and rows is not _native(rows):  # of its own dtypes the kernel asks the array
            return False
        return self._served(native.kernels.norm, self.x, None, self.weight, self.bias, rows, None)

    def _served(self, kernel: Any, *arrays: Array | None) -> bool:
        spec = self.spec
        flags = native.OWN_THREADS | (native.ZERO_CENTERED if spec.zero_centered else 0)
        how = NORM_KINDS.index(spec.kind), spec.normalized_shape, spec.eps, spec.p, flags
        return bool(kernel(*map(_describe, arrays), *how))

    def _do(self, kernel: Any, *arrays: Array | None) -> None:
        if not self._served(kernel, *arrays):
            raise RuntimeError(f"the kernels declined arguments that were checked ({self.spec}); please report this")

    def back(self, rows: Array) -> Array:
        """``rows`` with the normalised axes where they were."""
        if self.axes[0] == rows.ndim - len(self.axes):
            return rows
        return np.moveaxis(rows, range(-len(self.axes), 0), self.axes)


def _forward(call: _Call, out: Array | None) -> Array:
    if out is not None:
        # The kernel declines a wrong shape or dtype and shared memory, so only what it declined is checked here.
        if isinstance(out, np.ndarray) and out.flags.writeable and call.writes(out):
            return out
        _check_out(out, call)
    y = np.empty(call.x.shape, call.x.dtype)
    call.run(y)
    if out is None:
        return call.back(y)
    out[...] = call.back(y)
    return out


def _backward(dy: ArrayLike, call: _Call, bias: bool, plus: ArrayLike | None = None, name_of_x: str = "x") -> Gradients:
    if not isinstance(bias, (bool, np.bool_)):
        raise TypeError(
            f"bias must be True (there was one: its gradient is wanted) or False, got {type(bias).__name__}"
        )
    shape = call.back(call.x).shape

    def gradient(name: str, value: ArrayLike) -> Array:
        array = _floating(name, value)
        check_same(name, array.shape, name_of_x, shape, "shape")
        return _rows(array.astype(call.x.dtype, copy=False), call.axes)

    rows = gradient("dy", dy)
    plus_rows = None if plus is None else gradient("dnew_residual", plus)
    dx = np.empty(call.x.shape, call.x.dtype)
    dweight = None if call.weight is None else np.empty(call.weight.shape, call.weight.dtype)
    vector = np.empty(call.spec.normalized_shape, call.x.dtype) if dweight is None else dweight
    dbias = np.empty_like(vector) if bias else None
    call.run_backward(rows, plus_rows, dx, dweight, dbias)
    return call.back(dx), dweight, dbias


# Dtypes and axes, as specs, are checked once each: 28 of 45 µs at 1 × 1024 went there without these caches.


@lru_cache
def _name(dtype: np.dtype[Any]) -> str:
    return dtype.name


_OWN_DTYPES = frozenset(map(np.dtype, ("float16", "float32", "float64")))


def _describe(a: Any) -> Any:
    """An array as the kernels take it: they read one of NumPy's own dtypes themselves; of others, as bfloat16, they are
    told address, dtype, shape, and strides in elements."""
    if not isinstance(a, np.ndarray):
        return a
    if a.dtype in _OWN_DTYPES:
        return (a,)
    strides = tuple(s // a.itemsize for s in a.strides)
    return a.__array_interface__["data"][0], _DTYPES[_name(a.dtype)], a.shape, strides


def _floating(name: str, value: ArrayLike) -> Array:
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must be an ordinary array, got a masked one, whose mask would be lost")
    array = np.asarray(value)
    if _name(array.dtype) not in FLOATING:
        raise TypeError(
            f"{name} must be of a floating dtype ({', '.join(FLOATING)}), got {array.dtype}; convert it first"
        )
    return array


def _moved(array: Array, axes: tuple[int, ...]) -> Array:
    trailing = tuple(range(array.ndim - len(axes), array.ndim))
    return array if axes == trailing else np.moveaxis(array, axes, trailing)


def _native(array: Array) -> Array:
    """``array``, copied where it is unaligned, byte-swapped, or has strides that are no multiples of an element."""
    usual = array.dtype.isnative and array.flags.aligned and all(s % array.itemsize == 0 for s in array.strides)
    return array if usual else np.array(array, array.dtype.newbyteorder("="), order="C")


def _together(rows: Array, dims: int) -> bool:
    """Whether the last ``dims`` dimensions lie together in memory."""
    expected = rows.itemsize
    for extent, stride in zip(reversed(rows.shape[-dims:]), reversed(rows.strides[-dims:]), strict=True):
        if stride != expected and extent != 1:  # as View::contiguous has it
            return False
        expected *= extent
    return True


def _rows(array: Array, axes: tuple[int, ...]) -> Array:
    rows = _native(_moved(array, axes))
    return rows if _together(rows, len(axes)) else np.array(rows, order="C")


def _check_out(out: Array, call: _Call) -> None:
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a numpy.ndarray or None, got {type(out).__name__}")
    check_same("out", out.shape, "x", call.back(call.x).shape, "shape")
    check_same("out", out.dtype, "x", call.x.dtype, "dtype")
    if not out.flags.writeable:
        raise ValueError("out must be writeable, got a read-only array")
    check_no_self_overlap("out", out.shape, out.strides, out.itemsize)
    x = call.back(call.x)
    itself = out.__array_interface__["data"] == x.__array_interface__["data"] and out.strides == x.strides
    for name, array in (("x", None if itself else x), ("weight", call.weight), ("bias", call.bias)):
        if array is not None and share_memory(out, array):
            raise ValueError(f"out must not share memory with {name} (but it may be x itself); pass a fresh array")


def share_memory(a: Array, b: Array) -> bool:
    """Exactly, as for q and k in one packed buffer; where that is too hard to find out, whether they may."""
    try:
        return np.shares_memory(a, b, max_work=10_000)  # type: ignore[arg-type]
    except Exception as error:  # TooHardError lives in different modules in NumPy 1 and 2
        if type(error).__name__ != "TooHardError":
            raise
        return True
