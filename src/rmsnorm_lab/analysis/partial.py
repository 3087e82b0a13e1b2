"""How well the first k of n elements tell the root mean square of all n, at each norm of a trained network.

Let r = RMS(first k) / RMS(all n) for one row. A constant factor is no error, because the gain undoes it. So the error
is the standard deviation of r over the rows, divided by its mean. If the k elements were a random choice of the row's
n, it would be, to first order, with κ = mean(x⁴) / mean(x²)² of a row,

    error² = E[κ − 1] / 4k · (n − k) / (n − 1)

The rest is due to the order: neighbouring elements that are alike, or elements that are unlike the others everywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments import tasks
from rmsnorm_lab.experiments.norms.base import norms_wrapped
from rmsnorm_lab.experiments.trained import Trained

NORMS = ("layer", "rms", "prms")
"""Those with one statistic for each row."""


@dataclass(frozen=True)
class Estimate:
    """What the first k elements tell, over all rows of one norm."""

    k: int
    mean: float
    """Of r."""
    error: float
    """The standard deviation of r, divided by its mean."""
    random: float
    """The error of k elements chosen at random in each row, to first order."""


@dataclass(frozen=True)
class NormRows:
    """The rows that one norm of the network gets."""

    place: str
    """The module, and the gain if it has several: "blocks.0.norm", "encoder.directions.0 gain_hh"."""
    n: int
    rows: int
    kurtosis: float
    """The mean of κ over the rows; 3 for normal elements."""
    estimates: list[Estimate]
    """For k = 1, 2, 4, … below n."""


class _Sums:
    """Sums over the rows of one norm."""

    def __init__(self, n: int) -> None:
        self.n, self.rows, self.fourth = n, 0, 0.0
        self.ks = [1 << bit for bit in range((n - 1).bit_length())]
        self.first, self.second = torch.zeros(2, len(self.ks), dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """Rows of zeros have no ratio and are left out."""
        squares = x.detach().reshape(-1, self.n).double().square()
        mean = squares.mean(1, keepdim=True)
        squares, mean = squares[mean[:, 0] > 0], mean[mean[:, 0] > 0]
        ks = torch.tensor(self.ks)
        ratios = (squares.cumsum(1)[:, ks - 1] / ks / mean).sqrt()
        self.rows += len(ratios)
        self.fourth += float(((squares / mean) ** 2).mean(1).sum())
        self.first, self.second = self.first + ratios.sum(0), self.second + ratios.square().sum(0)

    def norm(self, place: str) -> NormRows:
        kurtosis, n = self.fourth / self.rows, self.n
        estimates = []
        for k, first, second in zip(self.ks, self.first.tolist(), self.second.tolist(), strict=True):
            mean = first / self.rows
            variance = max(second / self.rows - mean * mean, 0.0)
            random = ((kurtosis - 1) / (4 * k) * (n - k) / (n - 1)) ** 0.5
            estimates.append(Estimate(k, mean, variance**0.5 / mean, random))
        return NormRows(place, n, self.rows, kurtosis, estimates)


def measure(trained: Trained, data: Path | None = None, batches: int = 4) -> list[NormRows]:
    """Every norm of the network, in the order in which it calls them.

    Args:
        trained: a network on the CPU with one of NORMS. Of LayerNorm the rows before their mean is subtracted count.
        data: what it was trained on; None for the stand-in.
        batches: how many batches of the training are measured, in evaluation mode.

    Raises:
        UserError: the network has another norm, or the data are not those of its training.
    """
    if trained.norm not in NORMS:
        raise UserError(
            f"RUN must be trained with {', '.join(NORMS)}, which have one statistic a row; this one was trained with "
            f"{trained.norm}. Pass another run."
        )
    task = trained.on(data)
    found: dict[tuple[str, int], _Sums] = {}
    # A fused recurrence does not show its rows; in framework operators the network has the same parameters.
    model = tasks.module(trained.task).network(trained.recipe, trained.sizes, trained.norm, "unfused").eval()
    model.load_state_dict(trained.model.state_dict())

    def seen(path: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return _seen(model.get_submodule(path), path, function, found)

    with norms_wrapped(model, seen), torch.no_grad():
        for step in range(batches):
            task.loss(model, task.batch(step, trained.record.identity.seed))
    return [sums.norm(place) for (place, _), sums in found.items()]


def _seen(
    module: nn.Module, path: str, function: Callable[..., Any], found: dict[tuple[str, int], _Sums]
) -> Callable[..., Any]:
    """``function``, which also adds its first argument to the sums of its place."""
    gains = {parameter.untyped_storage().data_ptr(): name for name, parameter in module.named_parameters()}
    several = sum("gain" in name for name in gains.values()) > 1
    inner = hasattr(module, "normalise") and function == module.forward  # its own normalise sees the rows

    def call(x: Tensor, *others: Any) -> Any:
        if not inner:
            gain = gains.get(others[0].untyped_storage().data_ptr()) if several and others else None
            place = f"{path} {gain}" if gain else path
            found.setdefault((place, x.shape[-1]), _Sums(x.shape[-1])).add(x)
        return function(x, *others)

    return call
