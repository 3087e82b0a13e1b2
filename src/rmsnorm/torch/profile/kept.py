"""What a step changes is put back: modules, parameters, buffers, gradients, optimizers, random states."""

import random
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook


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
            self._containers.append((value, value.copy()))
        if not isinstance(value, np.ndarray):
            for each in value.values() if isinstance(value, dict) else tuple(value):
                self.add(each)

    def find_written(self) -> None:
        """Note what differs from what was kept: :meth:`rewind` is for that."""
        self._written = [kept for kept in self._tensors if kept.differs()]
        self._changed = [(value, kept) for value, kept in self._containers if _differs(value, kept)]
        # Of a dict only the entries that differ: meanwhile a module's own may hold another forward.
        self._changed = [
            (value, {name: kept.get(name, _MISSING) for name in _names_that_differ(value, kept)})
            if isinstance(value, dict)
            else (value, kept)
            for value, kept in self._changed
        ]

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


def _differs(value: Any, kept: Any) -> bool:
    if isinstance(value, dict):
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


class Kept:
    """A model, the optimizers that step meanwhile, and the random states: as they were when this was made."""

    def __init__(self, model: nn.Module) -> None:
        self._classes = [(module, type(module)) for module in model.modules()]
        self._model = Snapshot(*(vars(module) for module in model.modules()))
        self._random = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002  the caller's
        self._optimizers: dict[Optimizer, Snapshot] = {}
        self._moments: list[Snapshot] = []
        self._hook = register_optimizer_step_pre_hook(self._before_step)

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if optimizer not in self._optimizers:
            state = optimizer.state, optimizer.param_groups
            self._optimizers[optimizer] = Snapshot(*state, without=self._model)

    def learn(self) -> None:
        """After a first step: what it wrote is what :meth:`rewind` puts back before each further one.

        An optimizer's moments go back to what they are now, since making them is no part of a usual step.
        """
        self._model.find_written()
        self._moments = [
            Snapshot(optimizer.state, optimizer.param_groups, without=self._model) for optimizer in self._optimizers
        ]

    def rewind(self) -> None:
        """Before each step: the numbers that it starts from, so that all steps do the same work."""
        self._model.rewind()
        for moments in self._moments:
            moments.restore()
        self._restore_random()

    def restore(self) -> None:
        """The end: everything is as it was. An interruption waits until that is done."""
        interrupted = None
        while True:
            try:
                self._restore()
                break
            except KeyboardInterrupt as error:
                interrupted = error
        if interrupted:
            raise interrupted

    def _restore(self) -> None:
        self._hook.remove()
        for module, kind in self._classes:
            if type(module) is not kind:
                module.__class__ = kind
        self._model.restore()
        for snapshot in self._optimizers.values():
            snapshot.restore()
        self._restore_random()

    def _restore_random(self) -> None:
        python, numpy, cpu = self._random
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
