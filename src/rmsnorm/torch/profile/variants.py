"""A model's norms watched, and left out, for a while: by a ``forward`` of the instance, which hides its class's."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Forward = Callable[..., Any]


class Seen(NamedTuple):
    """What a norm was called with."""

    rows: int
    n: int
    dtype: torch.dtype
    result: torch.dtype | None
    """The result's dtype; None if that is no tensor of the input's shape."""
    gated: bool
    """Whether a second tensor of the input's shape was given."""

    @classmethod
    def of(cls, module: nn.Module, given: tuple[Any, ...], y: Any) -> "Seen | None":
        """From the arguments and the result; None if there is no tensor among the arguments."""
        tensors = [t for t in given if isinstance(t, Tensor)]
        if not tensors:
            return None
        x, *others = tensors
        n = _length(module, x)
        same = isinstance(y, Tensor) and y.shape == x.shape
        gated = any(t.shape == x.shape for t in others)
        return cls(x.numel() // max(n, 1), n, x.dtype, y.dtype if same else None, gated)


def _length(module: nn.Module, x: Tensor) -> int:
    shape = getattr(module, "normalized_shape", None)
    if isinstance(shape, tuple | list) and all(isinstance(extent, int) for extent in shape):
        return prod(shape)
    return next((p.shape[-1] for p in module.parameters() if p.dim()), x.shape[-1] if x.dim() else 1)


Calls = dict[nn.Module, Counter[Seen]]


@contextmanager
def forwards(replaced: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Each module calls the given function in place of its own forward."""
    before = {module: vars(module).get("forward") for module in replaced}
    try:
        for module, forward in replaced.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for module, own in before.items():
            if own is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = own


@contextmanager
def recorded(modules: Iterable[nn.Module]) -> Iterator[Calls]:
    """The calls of each module meanwhile."""
    calls: Calls = {module: Counter() for module in modules}

    def watched(module: nn.Module, own: Forward) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            y = own(*args, **kwargs)
            seen = Seen.of(module, (*args, *kwargs.values()), y)
            if seen is not None:
                calls[module][seen] += 1
            return y

        return forward

    with forwards({module: watched(module, module.forward) for module in calls}):
        yield calls


_NAMES = {
    F.rms_norm: "F.rms_norm",
    torch.rms_norm: "F.rms_norm",
    F.layer_norm: "F.layer_norm",
    torch.layer_norm: "F.layer_norm",
}


class Functions(TorchFunctionMode):
    """Counts the calls of torch's functional norms, those of its modules included."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _NAMES:
            self.calls[_NAMES[func]] += 1
        return func(*args, **(kwargs or {}))


def without(seen: Counter[Seen]) -> Forward | None:
    """The cheapest forward in the place of one that was called so: it returns its input, or input · gate.

    The product keeps the gate's gradient, without which the step would lose the work of the layer that makes the gate.
    None: a result is no tensor of the input's shape.
    """
    results = {call.dtype: call.result for call in seen}
    if not results or None in results.values():
        return None
    if any(call.gated for call in seen):
        return lambda x, *others, **named: _product(x, *others, *named.values()).to(results[x.dtype])
    if any(dtype != result for dtype, result in results.items()):
        return lambda *args, **named: _first(args, named).to(results[_first(args, named).dtype])
    return lambda *args, **named: args[0] if args else _first(args, named)


def _first(args: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    return next(t for t in (*args, *named.values()) if isinstance(t, Tensor))


def _product(x: Tensor, *others: Any) -> Tensor:
    return next((x * t for t in others if isinstance(t, Tensor) and t.shape == x.shape), x)
