"""What tensors must be; the messages are :mod:`rmsnorm.spec`'s. Called only after a kernel has declined."""

from itertools import combinations

import torch
from torch import Tensor
from torch.compiler import is_compiling

from rmsnorm.arrays import share_memory
from rmsnorm.spec import (
    FLOATING,
    check_angles,
    check_heads_of_positions,
    check_input,
    check_no_self_overlap,
    check_parameter,
    check_same,
)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_tensors(
    shape: tuple[int, ...], input: Tensor, weight: Tensor | None, bias: Tensor | None, per_head: bool = True
) -> None:
    """Floating dtypes, the normalised shape (a parameter may have a dimension of heads before it), one device."""
    if not isinstance(input, Tensor):
        raise TypeError(f"input must be a torch.Tensor, got {type(input).__name__}; NumPy arrays go to rmsnorm.numpy")
    check_dense("input", input)
    check_input("input", tuple(input.shape), _name(input.dtype), shape)
    check_memory("input", input)
    heads = input.shape[-len(shape) - 1] if per_head and input.dim() > len(shape) else None
    for name, t in (("weight", weight), ("bias", bias)):
        _check_parameter(name, t, shape, heads, "input", input)
    if weight is not None and bias is not None:
        check_same("bias", tuple(bias.shape), "weight", tuple(weight.shape), "shape")


def _check_parameter(
    name: str, t: Tensor | None, shape: tuple[int, ...], heads: int | None, of: str, input: Tensor
) -> None:
    if t is None:
        return
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor or None, got {type(t).__name__}")
    check_dense(name, t)
    check_parameter(name, tuple(t.shape), _name(t.dtype), shape, heads)
    check_memory(name, t)
    check_same(name, t.device, of, input.device, "device")


def check_alike(name: str, other: Tensor, input: Tensor, of: str = "input") -> None:
    """A residual, a gate or a gradient has the shape and device of the input, and a floating dtype."""
    _check_floating(name, other)
    check_same(name, tuple(other.shape), of, tuple(input.shape), "shape")
    check_same(name, other.device, of, input.device, "device")


def _check_floating(name: str, t: Tensor) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(t).__name__}")
    check_dense(name, t)
    if _name(t.dtype) not in FLOATING:
        raise TypeError(f"{name} must be of a floating dtype ({', '.join(FLOATING)}), got {_name(t.dtype)}")
    check_memory(name, t)


def check_rotary(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, q_weight: Tensor | None, k_weight: Tensor | None
) -> None:
    """Query and key are (…, heads, positions, head_dim), cos and sin (…, positions, rotary_dim) for their positions."""
    for name, t in (("q", q), ("k", k), ("cos", cos), ("sin", sin)):
        _check_floating(name, t)
        check_same(name, t.device, "q", q.device, "device")
    check_heads_of_positions(tuple(q.shape), tuple(k.shape))
    check_angles(tuple(cos.shape), tuple(sin.shape), (*q.shape[:-3], *q.shape[-2:]))
    for name, weight, of, x in (("q_weight", q_weight, "q", q), ("k_weight", k_weight, "k", k)):
        _check_parameter(name, weight, (x.shape[-1],), x.shape[-3], of, x)


def check_dense(name: str, t: Tensor) -> None:
    """Neither sparse, masked or nested, nor of another library's layout."""
    if t.is_nested:
        raise TypeError(
            f"{name} must be dense, got a nested tensor of layout {t.layout}; pad it with .to_padded_tensor(0.0), or "
            "give a norm the input torch.nested.nested_tensor(tensors, layout=torch.jagged)"
        )
    if t.layout is not torch.strided:
        raise TypeError(f"{name} must be dense, got a tensor of layout {t.layout}; convert it with .to_dense()")
    if type(t).__name__ == "MaskedTensor":  # Dynamo does not trace torch.masked.is_masked_tensor
        raise TypeError(f"{name} must be dense, got a MaskedTensor; fill it with .to_tensor(value)")


def check_memory(name: str, t: Tensor) -> None:
    """The tensor's storage was not freed: torch's operations crash on one that was."""
    if not _has_memory(t):
        return
    try:
        freed = not t.untyped_storage().nbytes()
    except (NotImplementedError, RuntimeError):  # another layout
        return
    if freed:
        raise ValueError(
            f"{name} must have its {t.numel()} elements in memory, got a tensor whose storage was freed "
            "(untyped_storage().resize_(0), as FSDP does between uses); gather it first"
        )


def check_memories(**tensors: Tensor | None) -> None:
    """:func:`check_memory` of each."""
    for name, t in tensors.items():
        if t is not None:
            check_memory(name, t)


def check_out(out: Tensor, dtype: torch.dtype, input: Tensor, *others: Tensor | None) -> None:
    """``out`` can be written to: shape, dtype and device of the result, no memory that is still to be read."""
    check_same("out", tuple(out.shape), "the result", tuple(input.shape), "shape")
    check_same("out", out.dtype, "the result", dtype, "dtype")
    check_same("out", out.device, "the result", input.device, "device")
    if is_compiling():  # a graph's result is whole before it is copied to out
        return
    check_memory("out", out)
    check_no_self_overlap("out", out.shape, out.stride(), 1)
    for name, t in zip(("input", "weight", "bias"), (input, *others), strict=True):
        if t is None or not _overlap(out, t):
            continue
        if name != "input" or t.data_ptr() != out.data_ptr() or t.stride() != out.stride():
            raise ValueError(f"out must not share memory with {name} (but it may be input itself); pass a fresh tensor")


def check_inplace(input: Tensor, residual: Tensor, dtype: torch.dtype, *parameters: Tensor | None) -> None:
    """``input`` and ``residual`` can take results: of the right dtype, no memory that is still to be read."""
    if dtype != input.dtype:
        raise ValueError(
            f"inplace=True writes the result into input, which must have its dtype, {dtype}, got {input.dtype}"
        )
    for name, t in (("input", input), ("residual", residual)):
        check_no_self_overlap(name, t.shape, t.stride(), 1)
        if is_compiling():
            continue
        # Before the first of the two is written, torch would refuse the second.
        if t._is_zerotensor():
            raise ValueError(
                f"{name} must have memory to write to with inplace=True, got torch's zeros without any; clone it"
            )
    read = (("residual", residual), ("weight", parameters[0]), ("bias", parameters[1]))
    for (a, one), (b, other) in combinations((("input", input), *read), 2):
        if a in ("input", "residual") and one is not None and other is not None and _overlap(one, other):
            raise ValueError(f"{a} and {b} must not share memory with inplace=True; pass a copy of one of them")


def check_no_gradient(what: str, *tensors: Tensor | None) -> None:
    """Raise if an argument requires grad: this operation is not differentiable."""
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in tensors):
        raise ValueError(
            f"{what} is not differentiable, but an argument requires grad; call under torch.no_grad(), or detach it"
        )


def check_writable(out: Tensor, gradient: bool) -> None:
    """``out`` is a tensor to write to, and no gradient is asked for: autograd does not see what a kernel writes."""
    if not isinstance(out, Tensor):
        raise TypeError(f"out must be a torch.Tensor or None, got {type(out).__name__}")
    if not is_compiling() and out.is_neg():  # the kernels see memory, not the bit
        raise ValueError("out must not be a view with torch's negative bit; pass a fresh tensor")
    if gradient or (out.requires_grad and torch.is_grad_enabled()):
        raise ValueError(
            "out= is not differentiable, but an argument requires grad; drop out=, or call under torch.no_grad()"
        )
    check_inference("out", out)


def check_inference(name: str, t: Tensor) -> None:
    """What was made in inference mode may be written only there: torch refuses others, the kernels would not."""
    if not is_compiling() and isinstance(t, Tensor) and t.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(
            f"{name} must not have been made in inference mode where the call is outside of it; pass a clone, or call "
            "under torch.inference_mode()"
        )


def _has_memory(t: Tensor) -> bool:
    """Whether ``t`` has an address to compare. In captured graphs and under transforms and fakes it has none."""
    if is_compiling() or t.is_meta or t.numel() == 0 or type(t) not in (Tensor, torch.nn.Parameter):
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(t)


def _overlap(a: Tensor, b: Tensor) -> bool:
    def extent(t: Tensor) -> tuple[int, int]:
        last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
        return t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size()

    if not (_has_memory(a) and _has_memory(b)) or a.device != b.device:
        return False
    (a0, a1), (b0, b1) = extent(a), extent(b)
    if not (a0 < b1 and b0 < a1):
        return False
    if not a.is_cpu:
        return True
    return share_memory(*(t.detach().resolve_neg().view(_BITS[t.element_size()]).numpy() for t in (a, b)))


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}
"""What NumPy reads elements of such a size as: it has no bfloat16."""
