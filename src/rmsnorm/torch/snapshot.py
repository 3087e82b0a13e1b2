"""What containers and tensors hold, to be compared with later and put back."""

from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Snapshot:
    """The contents of containers and tensors, and the gradients of leaves, to be put back into the same objects."""

    def __init__(self, *roots: Any, without: "Snapshot | None" = None) -> None:
        """Of all that is reached from ``roots``, except for what another snapshot has."""
        self._seen: dict[int, Any] = dict(without._seen) if without else {}
        self._containers: list[tuple[Any, Any]] = []
        self._tensors: list[_KeptTensor] = []
        self._written: list[_KeptTensor] = []
        self._changed: list[tuple[Any, Any]] = []
        for root in roots:
            self.add(root)

    def add(self, value: Any) -> None:
        """``value`` as it is now, and what it holds. Modules and other objects are not entered."""
        if not isinstance(value, Tensor | tuple | _CONTAINERS) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, Tensor):
            self._tensors.append(_KeptTensor(value))
            if value.is_leaf:
                self.add(value.grad)
            return
        if not isinstance(value, tuple):
            self._containers.append((value, _entries(value) if isinstance(value, dict) else value.copy()))
        if not isinstance(value, np.ndarray):
            for each in tuple(_entries(value).values() if isinstance(value, dict) else value):
                self.add(each)

    def find_written(self) -> None:
        """Note what differs from what was kept: :meth:`rewind` is for that."""
        self._written = [kept for kept in self._tensors if kept.differs()]
        self._changed = [(value, kept) for value, kept in self._containers if _differs(value, kept)]
        # Of a dict only the entries that differ: meanwhile a module's own may hold another forward.
        self._changed = [
            (value, {name: kept.get(name, _MISSING) for name in _names_that_differ(_entries(value), kept)})
            if isinstance(value, dict)
            else (value, kept)
            for value, kept in self._changed
        ]

    def differs(self) -> bool:
        """Whether anything has changed, gradients excepted."""
        self.find_written()
        return bool(self._written or self._changed)

    def rewind(self) -> None:
        """What was found changed, and the gradients."""
        for value, kept in self._changed:
            if not isinstance(value, dict):
                _refill(value, kept)
                continue
            for name, each in kept.items():
                if each is _MISSING:
                    value.pop(name, None)
                else:
                    value[name] = each
        for kept_tensor in self._tensors:
            kept_tensor.put_gradient()
        for kept_tensor in self._written:
            kept_tensor.put()

    def restore(self) -> None:
        """Everything. What has not changed is not touched, so that a graph which has saved it can still run."""
        for value, kept in self._containers:
            if _differs(value, kept):
                _refill(value, kept)
        self.find_written()
        self.rewind()


class _KeptTensor:
    """A tensor's memory, numbers, gradient and ``requires_grad``."""

    def __init__(self, t: Tensor) -> None:
        self.tensor, self.memory, self.numbers = t, t.detach(), t.detach().clone()
        self.gradient, self.requires_grad = (t.grad if t.is_leaf else None), t.requires_grad

    def differs(self) -> bool:
        """True also where torch cannot tell (float8, sparse)."""
        try:
            return self._moved() or not torch.equal(self.tensor, self.numbers)
        except RuntimeError:
            return True

    def _moved(self) -> bool:
        return self.tensor.shape != self.memory.shape or self.tensor.data_ptr() != self.memory.data_ptr()

    def put(self) -> None:
        """The numbers, in the memory where they were: a step may have resized the tensor or given it another."""
        with torch.inference_mode(self.tensor.is_inference()), torch.no_grad():
            if self._moved():
                self.tensor.data = self.memory
            self.tensor.copy_(self.numbers)

    def put_gradient(self) -> None:
        """The gradient, and whether there is to be one."""
        t = self.tensor
        if t.is_leaf:
            if t.requires_grad != self.requires_grad:
                t.requires_grad_(self.requires_grad)
            if t.grad is not self.gradient:
                t.grad = self.gradient


_CONTAINERS = dict | list | set | deque | bytearray | np.ndarray
_MISSING = object()


def _entries(value: dict) -> dict:
    """As they lie there: a subclass may make another value at each access (transformers' table of activations)."""
    return dict(dict.items(value))


def _differs(value: Any, kept: Any) -> bool:
    if isinstance(value, dict):
        value = _entries(value)
        return [*map(id, value)] != [*map(id, kept)] or bool(_names_that_differ(value, kept))
    if isinstance(value, list | deque):
        return [*map(id, value)] != [*map(id, kept)]
    if isinstance(value, np.ndarray):
        return value.shape != kept.shape or value.tobytes() != kept.tobytes()
    return bool(value != kept)


def _names_that_differ(value: dict, kept: dict) -> list[Any]:
    return [name for name in {**kept, **value} if value.get(name, _MISSING) is not kept.get(name, _MISSING)]


def _refill(value: Any, kept: Any) -> None:
    if isinstance(value, list | bytearray | np.ndarray):
        value[:] = kept
        return
    value.clear()
    (value.extend if isinstance(value, deque) else value.update)(kept)
