"""The interface between a task and the trainer, the timing and the reports."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from rmsnorm_lab.experiments.recipes.common import Recipe
from rmsnorm_lab.experiments.record import Content, Metric

__all__ = ["Batch", "Metric", "Source", "Task", "torch_generator"]

Batch = tuple[Any, ...]
"""Tensors (a NamedTuple of them) whose first dimension is the example: each process takes its slice."""


@dataclass(frozen=True)
class Source:
    """The data of a training."""

    name: str
    """"scikit-learn 1.7.2 load_digits", or the name of the user's file or folder, never a path of this machine."""
    stand_in: bool
    sha256: str
    """Of the content."""
    details: dict[str, Any] = field(default_factory=dict)
    """Counts, the split, and anything else that a table should show; JSON values."""

    @property
    def content(self) -> Content:
        """The part that a record's identity contains."""
        return Content(self.stand_in, self.sha256, self.details)


class Task(Protocol):
    """One experiment on one data source with one recipe."""

    name: str
    metrics: tuple[Metric, ...]
    """The first is the headline."""
    recipe: Recipe
    source: Source
    references: Mapping[str, float]
    """What the headline metric is without learning: {"guessing": 7.77, "character frequencies alone": 4.42}."""
    sizes: dict[str, int]
    """What of the network's shape the data decide: {"vocabulary": 515}. With it the module's
    ``network(recipe, sizes, norm, kernels)`` makes the network of ``model`` without the data."""

    def model(self, norm: str, kernels: str) -> nn.Module:
        """A new network on the CPU. torch is already seeded; the random numbers are the same for every normaliser."""

    def batch(self, step: int, seed: int) -> Batch:
        """The whole batch of a step (from 0), on the CPU: a pure function of its arguments, so that a resumed run and
        any number of processes see the same examples."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum of the losses of ``batch``, the whole one or a slice of it, on the model's device.

        Only ``model`` itself is called, none of its methods: under DDP and FSDP it is a wrapper. A loss that couples
        examples must gather them from all processes itself, differentiably.
        """

    def weight(self, batch: Batch) -> float:
        """What the sum over ``batch`` is divided by: its tokens or examples. Slices' weights add up to the whole's."""

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        """Every metric, and "loss", on ``split``: "valid" (the curve) or "test" (the end).

        The model is the plain one of ``model()``, in evaluation mode, without gradients; its methods may be called.
        Data are brought to ``next(model.parameters()).device``. All processes call it together; parts of the work go
        through :func:`processes.shared`, which divides them among the processes.
        """

    def initialise(self, model: nn.Module, seed: int) -> None:
        """Initialisation that depends on data; usually none. Called once, before the first step of a seed's run."""

    def files(self) -> dict[str, bytes]:
        """Name -> content of the files that a trained network needs, written next to the run: what was learnt from the
        training data to prepare inputs (subwords, words, a whitening)."""


def torch_generator(*key: int) -> torch.Generator:
    """Random numbers that are a function of the whole key, such as (step, seed).

    torch's own seeding of the CPU takes no more than 32 bits, so two numbers packed into one seed would lose one.
    """
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
