"""WeightNorm: w = g · v / ‖v‖ for each output of a linear or convolutional layer (Salimans & Kingma 2016)."""

from typing import Any

from torch import nn
from torch.nn.utils import parametrizations

from rmsnorm_lab.experiments.norms.base import NoNorm, mark


class Weight(NoNorm):
    """Normalises weights, and no activations."""

    def recurrence(self) -> dict[str, Any] | None:
        return None

    def parametrise(self, module: nn.Module, name: str = "weight") -> None:
        """By torch's parametrization. What was drawn stays what it was, g being its norm for each output."""
        parametrizations.weight_norm(module, name)
        mark(module.parametrizations[name])  # type: ignore[index, arg-type]
