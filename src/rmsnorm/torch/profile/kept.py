"""What a step changes is put back: modules, parameters, buffers, gradients, optimizers, random states."""

import random
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from rmsnorm.torch.snapshot import Snapshot


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
