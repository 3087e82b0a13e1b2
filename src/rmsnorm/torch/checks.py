"""What tensors must be; the messages are :mod:`rmsnorm.spec`'s. Called only where the kernels have declined."""

import torch
from torch import Tensor

from rmsnorm.numpy import share_memory
from rmsnorm.spec import FLOATING, check_input, check_no_self_overlap, check_parameter, check_same


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_tensors(shape: tuple[int, ...], input: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    """Floating dtypes, the normalised shape, one device."""
    if not isinstance(input, Tensor):
        raise TypeError(f"input must be a torch.Tensor, got {type(input).__name__}; NumPy arrays go to rmsnorm.numpy")
    check_input("input", tuple(input.shape), _name(input.dtype), shape)
    for name, t in (("weight", weight), ("bias", bias)):
        if t is None:
            continue
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor or None, got {type(t).__name__}")
        check_parameter(name, tuple(t.shape), _name(t.dtype), shape)
        check_same(name, t.device, "input", input.device, "device")


def check_residual(input: Tensor, residual: Tensor) -> None:
    """The stream has the shape and device of what is added to it, and a floating dtype."""
    if not isinstance(residual, Tensor):
        raise TypeError(f"residual must be a torch.Tensor, got {type(residual).__name__}")
    check_same("residual", tuple(residual.shape), "input", tuple(input.shape), "shape")
    check_same("residual", residual.device, "input", input.device, "device")
    if _name(residual.dtype) not in FLOATING:
        raise TypeError(f"residual must be of a floating dtype ({', '.join(FLOATING)}), got {_name(residual.dtype)}")


def check_out(out: Tensor, dtype: torch.dtype, input: Tensor, *others: Tensor | None) -> None:
    """``out`` can be written to: shape, dtype and device of the result, no memory that is still to be read."""
    check_same("out", tuple(out.shape), "the result", tuple(input.shape), "shape")
    check_same("out", out.dtype, "the result", dtype, "dtype")
    check_same("out", out.device, "the result", input.device, "device")
    if out.is_neg():
        raise ValueError("out must not be a view with torch's negative bit; pass a fresh tensor")
    check_no_self_overlap("out", out.shape, out.stride(), 1)
    for name, t in zip(("input", "weight", "bias"), (input, *others), strict=True):
        same = t is not None and t.data_ptr() == out.data_ptr() and t.stride() == out.stride() and name == "input"
        if t is not None and not same and _overlap(out, t):
            raise ValueError(f"out must not share memory with {name} (but it may be input itself); pass a fresh tensor")


def check_writable(out: Tensor, gradient: bool) -> None:
    """``out`` is a tensor, and nobody wants a gradient of what is written to it, where autograd cannot see it."""
    if not isinstance(out, Tensor):
        raise TypeError(f"out must be a torch.Tensor or None, got {type(out).__name__}")
    if gradient or (out.requires_grad and torch.is_grad_enabled()):
        raise ValueError(
            "out= is not differentiable, but an argument requires grad; drop out=, or call under torch.no_grad()"
        )


def _overlap(a: Tensor, b: Tensor) -> bool:
    def extent(t: Tensor) -> tuple[int, int]:
        last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
        return t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size()

    if a.is_meta or not (a.numel() and b.numel()) or a.device != b.device:
        return False
    (a0, a1), (b0, b1) = extent(a), extent(b)
    if not (a0 < b1 and b0 < a1):
        return False
    if not a.is_cpu or a.stride(-1) != 1 or b.stride(-1) != 1:
        return True
    return share_memory(*(t.detach().resolve_neg().view(torch.uint8).numpy() for t in (a, b)))
