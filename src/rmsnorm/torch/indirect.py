"""Calls on arguments that hold no numbers themselves: the call is recorded, or made on what the arguments hold.

- A proxy of ``torch.fx`` records the call of the public function.
- A jagged nested tensor is its values, and where each item of the batch begins: its norm is the norm of its values.
- A DTensor is a part in each process: where rows are whole, its norm is each process's norm of its own part.

The parts go to the public function again, and so to the kernels. torch differentiates the way there and back.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.overrides import handle_torch_function
from torch.utils._pytree import tree_map_only

from rmsnorm.spec import MismatchError, check_same, check_shape
from rmsnorm.torch.checks import check_dense

Named = dict[str, Any]
"""Arguments by name."""
Parts = tuple[Named, Named, Callable[[Tensor], Tensor]]
"""What rows and parameters hold, and how a result becomes a tensor of the input's kind."""


def indirect(function: Callable[..., Any], rows: Named, normalized_shape: Any, **others: Any) -> Any:
    """What ``function`` gives of these arguments, or None if they are tensors to compute on.

    rows: the arguments of the input's shape; others: weight, bias, and what else the function takes.
    """
    noted = recorded_call(function, (*rows.values(), normalized_shape), others)
    if noted is not None:
        return noted
    given = *rows.values(), *others.values()
    if not any(map(holds_tensors, given)):
        return None
    if others.get("out") is not None or others.get("inplace"):
        what = "inplace=True" if others.get("inplace") else "out="
        raise NotImplementedError(f"{what} takes neither nested tensors nor DTensors; use the results instead")
    parameters = {name: others[name] for name in ("weight", "bias") if others.get(name) is not None}
    for name, t in (rows | parameters).items():
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(t).__name__}")
    open_up = _parts if any(map(_is_distributed, given)) else _values
    held, held_parameters, rebuild = open_up(rows, parameters, _dims(normalized_shape))
    return tree_map_only(Tensor, rebuild, function(*held.values(), normalized_shape, **others | held_parameters))


def recorded_call(function: Callable[..., Any], arguments: tuple[Any, ...], options: Named) -> Any:
    """What an argument that notes calls gives of this one, or None if there is none."""
    given = *arguments, *options.values()
    if is_compiling() or not any(map(_records, given)):
        return None
    return handle_torch_function(function, given, *arguments, **options)


def refuse_holders(what: str, *tensors: Any) -> None:
    """Raise for nested tensors and DTensors, of which ``what`` does not make parts."""
    for t in tensors:
        if holds_tensors(t):
            raise NotImplementedError(
                f"{what} takes neither nested tensors nor DTensors, got a {type(t).__name__}; give it dense tensors: "
                "a nested tensor's .to_padded_tensor(0.0), or a DTensor's .to_local() with whole heads"
            )


def holds_tensors(t: Any) -> bool:
    """Whether ``t`` is a nested tensor or a DTensor."""
    return isinstance(t, Tensor) and (t.is_nested or _is_distributed(t))


def _records(argument: Any) -> bool:
    """Whether it is no tensor but notes what is done with it, as proxies do."""
    return not isinstance(argument, Tensor) and hasattr(type(argument), "__torch_function__")


def _dims(normalized_shape: Any) -> int:
    """How many dimensions; an extent may be a ragged one, which is no number."""
    return len(normalized_shape if isinstance(normalized_shape, (tuple, list)) else check_shape(normalized_shape))


# ---- jagged nested tensors ----


def _values(rows: Named, parameters: Named, dims: int) -> Parts:
    (first, input), *others = rows.items()
    for name, t in rows.items():
        _check_jagged(name, t)
    for name, t in others:
        check_same(name, tuple(t.shape), first, tuple(input.shape), "shape")
    ragged = input._ragged_idx
    if ragged >= input.dim() - dims:
        raise NotImplementedError(
            f"the ragged dimension of {first} must not be one of the {dims} normalised, got a nested tensor of shape "
            f"{tuple(input.shape)}; norm each of {first}.unbind() by itself"
        )
    for name, t in parameters.items():
        if t.is_nested or (t.dim() > dims and ragged == input.dim() - dims - 1):
            raise MismatchError(
                f"{name} must be a dense tensor of the shape normalized_shape where the dimension before it is ragged, "
                f"got {'a nested tensor of' if t.is_nested else ''} shape {tuple(t.shape)}"
            )

    def rebuild(y: Tensor) -> Tensor:
        return torch.nested.nested_tensor_from_jagged(
            y,
            input.offsets(),
            jagged_dim=ragged,
            min_seqlen=input._maybe_min_seqlen,
            max_seqlen=input._maybe_max_seqlen,
        )

    return {name: t.values() for name, t in rows.items()}, parameters, rebuild


def _check_jagged(name: str, t: Any) -> None:
    if t.layout is not torch.jagged:
        check_dense(name, t)
        raise TypeError(f"{name} must be a jagged nested tensor as the other argument is, got one that is not nested")
    if t.lengths() is not None:
        raise NotImplementedError(
            f"{name} must be a nested tensor without holes, got one with lengths beside its offsets (as "
            "torch.nested.narrow makes it); use its .contiguous()"
        )


# ---- DTensors ----


def _is_distributed(t: Any) -> bool:
    """By its name: importing the class takes most of a second."""
    return type(t).__name__ == "DTensor"


def _parts(rows: Named, parameters: Named, dims: int) -> Parts:
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    (first, input), *others = rows.items()
    for name, t in (rows | parameters).items():
        if not isinstance(t, DTensor):
            raise TypeError(
                f"{name} must be a DTensor where another argument is one, got {type(t).__name__}; distribute it with "
                "torch.distributed.tensor.distribute_tensor"
            )
        check_same(name, t.device_mesh, first, input.device_mesh, "device mesh")
    for name, t in others:
        check_same(name, tuple(t.shape), first, tuple(input.shape), "shape")
    mesh, outer = input.device_mesh, input.dim() - dims

    def whole_rows(number: int) -> Any:
        """The first placement on a dimension of the mesh that leaves rows whole; without one, rows are gathered."""
        found = (t.placements[number] for t in rows.values())
        return next((p for p in found if isinstance(p, Shard) and p.dim < outer), Replicate())

    placements = [whole_rows(number) for number in range(mesh.ndim)]

    def part(t: Any, where: list[Any], gradient: list[Any] | None = None) -> Tensor:
        there = t if list(t.placements) == where else t.redistribute(placements=where)
        return there.to_local(grad_placements=gradient)

    def parameter(t: Tensor) -> Tensor:
        """A head's gain lies where the head does; any other is whole, and its gradient the sum over the processes."""
        where: list[Any] = []
        gradient: list[Any] = []
        for placement in placements:
            sharded = isinstance(placement, Shard)
            of_head = sharded and t.dim() > dims and placement.dim == outer - 1
            where.append(Shard(0) if of_head else Replicate())
            gradient.append(Partial() if sharded and not of_head else where[-1])
        return part(t, where, gradient)

    def rebuild(y: Tensor) -> Tensor:
        shape = torch.Size((*input.shape[:outer], *y.shape[outer:]))
        return DTensor.from_local(y, mesh, placements, run_check=False, shape=shape, stride=_strides(y, shape))

    held = {name: part(t, placements) for name, t in rows.items()}
    return held, {name: parameter(t) for name, t in parameters.items()}, rebuild


def _strides(part: Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Those of a whole tensor of that shape whose dimensions lie in memory in the part's order."""
    strides, step = [0] * len(shape), 1
    for d in sorted(range(len(shape)), key=lambda d: (part.stride(d), -d)):
        strides[d] = step
        step *= max(1, shape[d])
    return tuple(strides)
