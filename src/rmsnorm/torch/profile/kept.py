"""What a step changes is put back: modules, parameters, buffers, gradients, optimizers, random states."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook


class Snapshot:
    """The contents of dicts, lists and tensors, and the gradients of leaves, to be put back into the same objects."""

    def __init__(self, *roots: Any, without: "Snapshot | None" = None) -> None:
        """Of all that is reached from ``roots``, except for what another snapshot has."""
        self._seen: dict[int, Any] = dict(without._seen) if without else {}
        self._containers: list[tuple[Any, Any]] = []
        self._tensors: list[tuple[Tensor, Tensor]] = []
        self._gradients: list[tuple[Tensor, Tensor | None]] = []
        self._written: list[tuple[Tensor, Tensor]] = []
        for root in roots:
            self.add(root)

    def add(self, value: Any) -> None:
        """``value`` as it is now, and what it holds. Modules are not entered."""
        if not isinstance(value, Tensor | dict | list | tuple) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, Tensor):
            self._tensors.append((value, value.detach().clone()))
            if value.is_leaf and value.requires_grad:
                self._gradients.append((value, value.grad))
                self.add(value.grad)
            return
        if not isinstance(value, tuple):
            self._containers.append((value, value.copy()))
        for each in value.values() if isinstance(value, dict) else value:
            self.add(each)

    def find_written(self) -> None:
        """Note the tensors that differ from what was kept: :meth:`rewind` is for them."""
        self._written = [(t, kept) for t, kept in self._tensors if not _equal(t, kept)]

    def rewind(self) -> None:
        """The tensors that were found written, and the gradients."""
        for t, gradient in self._gradients:
            if t.grad is not gradient:
                t.grad = gradient
        for t, kept in self._written:
            with torch.inference_mode(t.is_inference()), torch.no_grad():
                t.copy_(kept)

    def restore(self) -> None:
        """Everything. What has not changed is not touched, so that a graph which has saved it can still run."""
        for value, kept in self._containers:
            if isinstance(value, list):
                value[:] = kept
            elif [*map(id, value)] != [*map(id, kept)] or any(value[name] is not each for name, each in kept.items()):
                value.clear()
                value.update(kept)
        self.find_written()
        self.rewind()


def _equal(t: Tensor, kept: Tensor) -> bool:
    """False also where torch cannot tell (float8, sparse)."""
    try:
        return torch.equal(t, kept)
    except RuntimeError:
        return False


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
        """Before a step: the numbers that it starts from, so that all steps do the same work."""
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
