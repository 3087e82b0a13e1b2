"""An operation on tensors: its kernel, its expression in torch's operations, and what leads from one to the other."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling

from rmsnorm.torch import checks
from rmsnorm.torch.bindings import kernels_of
from rmsnorm.torch.dispatch import KERNEL, eager_way, has_no_numbers, transformed
from rmsnorm.torch.onnx import exporting

Tensors = tuple[Any, ...]
"""Tensors; None for what is not given or not wanted."""
Wants = Sequence[bool]


class Operation(NamedTuple):
    """One operation of a family, forward or backward, for every spec of that family.

    Its tensors have a fixed order: those with rows first, then the parameters.
    """

    names: tuple[str, ...]
    """Of the tensors."""
    rows: int
    """How many of the tensors, the first, have rows; a kernel needs each row's elements together in memory."""
    like: tuple[int | None, ...]
    """The tensor whose strides each result has; None: contiguous."""
    attempt: Callable[..., Tensors | None]
    """(kernels, spec, tensors, wants or None) → results, allocated and written by a kernel; None: it declines."""
    check: Callable[..., None]
    """(spec, *tensors): raises for tensors that fit neither the spec nor each other."""
    composite: Callable[..., Tensors]
    """(spec, *tensors, *wants) → the results, in torch's own operations."""
    operator: Callable[..., Tensors] | None = None
    """(spec, *tensors) → the results of the operator of torch.library, if there is one."""


def run(operation: Operation, spec: Any, tensors: Tensors, wants: Wants | None = None) -> Tensors:
    """The results by the device's kernel, without autograd.

    The kernel is tried first, with the tensors as they are. Only if it declines are they checked, and copied if their
    rows do not lie together; what it declines even then is left to the composite.
    """
    kernels = kernels_of(tensors[0])
    try:
        results = operation.attempt(kernels, spec, tensors, wants)
    except NotImplementedError:  # torch allocates no result like such a tensor (mkldnn's); the check says what is wrong
        results = None
    if results is not None:
        return results
    operation.check(spec, *tensors)
    dims, rows = len(spec.normalized_shape), operation.rows
    copied = *(rows_contiguous(t, dims) for t in tensors[:rows]), *tensors[rows:]
    results = operation.attempt(kernels, spec, copied, wants)
    if results is None:
        results = operation.composite(spec, *tensors, *_given(wants))
    return lay_out(operation, results, tensors)


def _given(wants: Wants | None) -> tuple[Wants, ...]:
    return () if wants is None else (wants,)


def run_composite(operation: Operation, spec: Any, tensors: Tensors, wants: Wants | None = None) -> Tensors:
    """The same results by torch's operations, after checks."""
    operation.check(spec, *tensors)
    return lay_out(operation, operation.composite(spec, *tensors, *_given(wants)), tensors)


def checked_composite(operation: Operation, spec: Any, tensors: Tensors) -> Tensors:
    """The results in the expression's own strides, or an operator's for tensors that hold no numbers."""
    operation.check(spec, *tensors)
    if operation.operator and not is_compiling() and has_no_numbers(tensors[0]):
        return operation.operator(spec, *tensors)  # its results have the strides of the kernels'
    return operation.composite(spec, *tensors)


def run_backward(
    operation: Operation, operator: Callable[..., Any], spec: Any, tensors: Tensors, wants: Wants
) -> Tensors:
    """The gradients in a node's backward pass, which may itself be differentiated, mapped over or compiled."""
    if is_compiling():  # compiled autograd
        return wanted(operator(spec, tensors, wants), wants)
    if not transformed() and eager_way(*tensors) == KERNEL:  # is_grads_batched: a vmap that eager_way does not see
        return run(operation, spec, tensors, wants)
    checks.check_memories(**dict(zip(operation.names, tensors, strict=True)))
    return operation.composite(spec, *tensors, wants)


def wanted(gradients: Sequence[Any], wants: Wants) -> tuple[Any, ...]:
    """``gradients``, None for what is not wanted: a backward operator returns an empty tensor in its place."""
    return tuple(g if w else None for g, w in zip(gradients, wants, strict=True))


def rows_contiguous(t: Tensor | None, dims: int) -> Tensor | None:
    """``t``, copied if its last ``dims`` dimensions do not lie together in memory, or if its sign is only a flag."""
    if t is None:
        return None
    expected = 1
    for extent, stride in zip(reversed(t.shape[-dims:]), reversed(t.stride()[-dims:]), strict=True):
        if stride != expected and extent != 1:
            return t.clone(memory_format=torch.contiguous_format)
        expected *= extent
    return t.resolve_neg()


def lay_out(operation: Operation, results: Tensors, tensors: Tensors) -> Tensors:
    """``results`` with the strides that the operation's have."""
    like = (None if i is None else tensors[i] for i in operation.like)
    return tuple(r if r is None or t is None else laid_out(r, t) for r, t in zip(results, like, strict=True))


def laid_out(made: Tensor, like: Tensor) -> Tensor:
    """``made`` with the strides of ``torch.empty_like(like)``, copied if it has others.

    Dense layouts (permuted, channels_last) are kept, as torch's elementwise operators keep them. A transform's wrapper
    has the layout that the transform gives it, and ONNX has no strides.
    """
    if torch._C._functorch.is_functorch_wrapped_tensor(made) or exporting():
        return made
    y = torch.empty_like(like, dtype=made.dtype)
    return made if made.stride() == y.stride() else y.copy_(made)


def recorded(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``function.apply`` without what it does under torch's transforms, where no call is left to a kernel's node.

    That is 4 of the 53 µs of forward and backward at 1 × 1024. The node calls the backward function itself, not torch's
    method that looks for it at every call: 1.4 of 38 µs. A torch without this private class keeps its method.
    """
    node = getattr(function, "_backward_cls", None)
    if node is not None:
        node.apply = function.backward
    apply: Callable[..., Any] = super(torch.autograd.Function, function).apply  # type: ignore[misc]
    return apply


def saveable(*tensors: Tensor | None) -> Tensors:
    """``tensors``, copied if made in inference mode: autograd refuses to save those, but torch's own norms, whose
    operators save their results, take them."""
    for t in tensors:
        if t is not None and t.is_inference():
            return tuple(t.clone() if t is not None and t.is_inference() else t for t in tensors)
    return tensors


def extents(normalized_shape: int | Sequence[int]) -> list[int]:
    """``normalized_shape`` as an operator takes it."""
    return [normalized_shape] if isinstance(normalized_shape, int) else list(normalized_shape)
