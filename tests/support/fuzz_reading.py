"""How the oracles of fuzz_oracles.py read a call's arguments: in float64, or why not.

Arguments that the documentation does not allow raise :class:`Refused`. ``UNSURE`` arguments may be refused, or give the
right result.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import torch

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ARRAYS = (np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


class Refused(Exception):
    """The documentation does not allow these arguments."""


class Unknown(Exception):
    """Nobody says what these arguments give; they may be refused or served, and must not do harm."""


class Left(Exception):
    """The call is not made."""


NO = object()  # no gradient is asked for
UNSURE: list[str] = []  # why this call may be refused or served; cleared for each


def must(condition: Any) -> None:
    if not condition:
        raise Refused


def is_tensor(t: Any) -> bool:
    if isinstance(t, torch.Tensor) and type(t) not in (torch.Tensor, torch.nn.Parameter):
        if isinstance(t, torch._subclasses.FakeTensor) or t.is_nested:
            raise Unknown
        UNSURE.append("a subclass")
    return isinstance(t, torch.Tensor)


def values(t: torch.Tensor) -> np.ndarray:
    """A floating tensor that lies in memory, in float64."""
    must(is_tensor(t) and t.dtype in FLOATS)
    if (
        t.device.type != "cpu" or t.layout is not torch.strided or t.is_mkldnn or t._is_zerotensor() or t.dim() > 64
    ):  # 64: NumPy's most
        raise Unknown
    if t.is_inference() or t.requires_grad:
        UNSURE.append("what autograd has to say")
    if t.numel():
        must(t.untyped_storage().nbytes())
    return t.detach().clone().double().numpy(force=True)


def is_freed(t: Any) -> bool:
    usual = type(t) in (torch.Tensor, torch.nn.Parameter) and t.layout is torch.strided and not t.is_mkldnn
    return usual and t.numel() > 0 and not t.untyped_storage().nbytes()


def numbers(t: Any) -> np.ndarray:
    """The finite numbers of a tensor or an array, for the size of an error; none where they cannot be read."""
    if isinstance(t, torch.Tensor):
        usual = type(t) in (torch.Tensor, torch.nn.Parameter) and t.layout is torch.strided and t.device.type == "cpu"
        t = (
            t.detach().clone().double().numpy(force=True)
            if usual and t.dtype in FLOATS and t.untyped_storage().nbytes()
            else np.zeros(1)
        )
    t = np.asarray(t).astype(np.float64) if t.dtype in ARRAYS else np.zeros(1)
    return t[np.isfinite(t)]


def array(a: Any) -> np.ndarray:
    if isinstance(a, np.ma.MaskedArray) or not isinstance(a, np.ndarray):
        UNSURE.append("not an ordinary array")
        must(not isinstance(a, np.ma.MaskedArray))
    a = np.asarray(a)
    must(a.dtype in ARRAYS or a.dtype.newbyteorder("=") in ARRAYS)
    return a.astype(np.float64)


def number(value: Any) -> float:
    if type(value) not in (int, float):
        UNSURE.append("something like a number")
    must(not isinstance(value, (str, bytes, complex, list, type(None))))
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except Exception as error:
        raise Refused from error


def eps_of(eps: Any, dtype: torch.dtype | np.dtype) -> float:
    if eps is None:
        return float(np.finfo(np.float64 if dtype in (torch.float64, np.dtype(np.float64)) else np.float32).eps)
    eps = number(eps)
    must(math.isfinite(eps))
    if eps < 0:  # torch takes it, and gives what comes of it
        UNSURE.append("a negative eps")
    return eps


def count(n: int, p: Any) -> int:
    p = number(p)
    must(0 < p <= 1)
    return max(1, math.ceil(Fraction(str(p)) * n)) if n else 0


def flag(value: Any) -> bool:
    if type(value) is not bool:
        UNSURE.append("something like a bool")
    must(isinstance(value, (bool, int, np.bool_, float)) and value in (0, 1))
    return bool(value)


def extents(shape: Any, of: tuple[int, ...]) -> tuple[int, ...]:
    """A normalised shape: the last dimensions of ``of``."""
    if type(shape) not in (int, tuple, list, torch.Size):
        UNSURE.append("something like a shape")
    try:
        shape = (shape,) if hasattr(shape, "__index__") else tuple(shape)
        shape = tuple(e.__index__() for e in shape)
    except Exception as error:
        raise Refused from error
    must(shape and min(shape) >= 0 and of[len(of) - len(shape) :] == shape and len(of) >= len(shape))
    return shape


def parameters(shape: tuple[int, ...], x: np.ndarray, read: Callable, *given: Any) -> list[np.ndarray | None]:
    """Gain and bias, of the normalised shape or with one of each head, as (n,) or (heads, n)."""
    read_ones = [None if g is None else read(g) for g in given]
    n, d = math.prod(shape), len(shape)
    found = [g for g in read_ones if g is not None]
    must(all(g.shape == found[0].shape for g in found))
    for g in found:
        must(g.shape == shape or (x.ndim > d and g.shape == (x.shape[-d - 1], *shape)))
    return [None if g is None else g.reshape((n,) if g.shape == shape else (g.shape[0], n)) for g in read_ones]


def flat(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return x.reshape(*x.shape[: x.ndim - len(shape)], math.prod(shape))


def places(t: torch.Tensor) -> np.ndarray:
    """The bytes of its storage that a tensor's elements lie in, one after the other."""
    at = np.full(1, t.storage_offset() * t.element_size())
    for extent, stride in zip(t.shape, t.stride(), strict=True):
        at = (at[:, None] + np.arange(extent) * stride * t.element_size()).ravel()
    return (at[:, None] + np.arange(t.element_size())).ravel()


def addresses(a: np.ndarray) -> np.ndarray:
    """The bytes that an array's elements lie in."""
    at = np.full(1, a.__array_interface__["data"][0], np.int64)
    for extent, stride in zip(a.shape, a.strides, strict=True):
        at = (at[:, None] + np.arange(extent) * stride).ravel()
    return (at[:, None] + np.arange(a.itemsize)).ravel()
