"""Calls of the native kernels with NumPy arrays: checked, laid out as the kernels take them, and brought back."""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

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

Array = NDArray[Any]
Gradients = tuple[Array, Array | None, Array | None]
_DTYPES = {name: code for code, name in enumerate(native.DTYPES)}


class Call(NamedTuple):
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
    ) -> "Call":
        x = floating(name_of_x, x)
        axes = normalized_axes(axis, x.ndim)
        spec = norm_spec(kind, tuple(x.shape[a] for a in axes), eps, p, zero_centered)
        rows = as_rows(x, axes)
        heads = rows.shape[-len(axes) - 1] if rows.ndim > len(axes) else None
        parameters: list[Array | None] = []
        for name, value in (("weight", weight), ("bias", bias)):
            if value is not None:
                value = _native(floating(name, value))
                check_parameter(name, value.shape, _name(value.dtype), spec.normalized_shape, heads)
            parameters.append(value)
        weight, bias = parameters
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

    def run_quantized(self, q: Array, scale: Array, residual: Array | None, total: Array | None) -> None:
        """The kernel into codes and scales; with a residual the sum into ``total``, and the codes of its norm."""
        self._do(native.kernels.quantized, self.x, residual, self.weight, q, scale, total)

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
        kind = () if kernel is native.kernels.quantized else (NORM_KINDS.index(spec.kind),)
        return bool(kernel(*map(_describe, arrays), *kind, spec.normalized_shape, spec.eps, spec.p, flags))

    def _do(self, kernel: Any, *arrays: Array | None) -> None:
        if not self._served(kernel, *arrays):
            raise RuntimeError(f"the kernels declined arguments that were checked ({self.spec}); please report this")

    def back(self, rows: Array) -> Array:
        """``rows`` with the normalised axes where they were."""
        if self.axes[0] == rows.ndim - len(self.axes):
            return rows
        return np.moveaxis(rows, range(-len(self.axes), 0), self.axes)


def forward(call: Call, out: Array | None) -> Array:
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


def backward(dy: ArrayLike, call: Call, bias: bool, plus: ArrayLike | None = None, name_of_x: str = "x") -> Gradients:
    if not isinstance(bias, (bool, np.bool_)):
        raise TypeError(
            f"bias must be True (there was one: its gradient is wanted) or False, got {type(bias).__name__}"
        )
    shape = call.back(call.x).shape

    def gradient(name: str, value: ArrayLike) -> Array:
        array = floating(name, value)
        check_same(name, array.shape, name_of_x, shape, "shape")
        return as_rows(array.astype(call.x.dtype, copy=False), call.axes)

    rows = gradient("dy", dy)
    plus_rows = None if plus is None else gradient("dnew_residual", plus)
    dx = np.empty(call.x.shape, call.x.dtype)
    dweight = None if call.weight is None else np.empty(call.weight.shape, call.weight.dtype)
    vector = np.empty(call.spec.normalized_shape, call.x.dtype) if dweight is None else dweight
    dbias = np.empty_like(vector) if bias else None
    call.run_backward(rows, plus_rows, dx, dweight, dbias)
    return call.back(dx), dweight, dbias


def quantized(call: Call, residual: Array | None, dtype: np.dtype[Any]) -> tuple[Array, Array, Array | None]:
    """(q, scale, the sum of x and residual); without a residual there is no sum."""
    shape, outer = call.x.shape, call.x.ndim - len(call.axes)
    q = np.empty(shape, dtype)
    scale = np.empty((*shape[:outer], *(1,) * len(call.axes)), np.float32)
    if residual is None:
        call.run_quantized(q, scale, None, None)
        return call.back(q), call.back(scale), None
    total = np.empty(shape, call.x.dtype)
    call.run_quantized(q, scale, as_rows(residual, call.axes), total)
    return call.back(q), call.back(scale), call.back(total)


def eight_bit(dtype: DTypeLike) -> np.dtype[Any]:
    expected = "dtype must be numpy.int8 or ml_dtypes.float8_e4m3fn"
    try:
        found = np.dtype(dtype)
    except (TypeError, ValueError):  # NumPy asks the object for its own dtype
        raise TypeError(f"{expected}, got {dtype!r}") from None
    if _name(found) not in ("int8", "float8_e4m3fn"):
        raise NotImplementedError(f"{expected}, got {found}")
    return found


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


def floating(name: str, value: ArrayLike) -> Array:
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must be an ordinary array, got a masked one, whose mask would be lost")
    try:
        array = np.asarray(value)
    except Exception as error:  # whatever an __array__ method raises: torch's refuses bfloat16 and gradients
        raise TypeError(
            f"{name} must be an array, or something that NumPy can make one of, got {type(value).__name__}, of which "
            f"NumPy says: {error}"
        ) from error
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


def as_rows(array: Array, axes: tuple[int, ...]) -> Array:
    rows = _native(_moved(array, axes))
    return rows if _together(rows, len(axes)) else np.array(rows, order="C")


def _check_out(out: Array, call: Call) -> None:
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
