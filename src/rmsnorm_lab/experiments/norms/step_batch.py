"""Batch norm inside a recurrence: the statistics of each time step are its own (Cooijmans et al. 2017, §3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmsnorm_lab.experiments.recipes.common import EPS

Running = list[Tensor | None]
"""For each step the indices of the sequences that still run; None: all of them."""


def active(lengths_B: Tensor, steps: int) -> Tensor:
    """(T, B): whether sequence b still runs at step t."""
    return torch.arange(steps, device=lengths_B.device)[:, None] < lengths_B


def still_running(lengths_B: Tensor, steps: int) -> Running:
    every = active(lengths_B, steps)
    return [None if row.all() else row.nonzero()[:, 0] for row in every]


class StepBatchNorm(nn.Module):
    """(x − mean_t) / √(var_t + eps) ⊙ gain for each feature, over the examples that still run at step t.

    (x_BN, gain_N, their indices or None, t) -> (B, N), 0 for those that do not. Evaluation uses running statistics of
    each step; steps from ``max_steps`` on share the last one's. So does training where fewer than two examples still
    run: their own statistics would make them 0.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, unfused: bool, max_steps: int = 512, momentum: float = 0.1) -> None:
        super().__init__()
        self.unfused, self.momentum = unfused, momentum
        self.register_buffer("running_mean", torch.zeros(max_steps, width))
        self.register_buffer("running_var", torch.ones(max_steps, width))

    def forward(self, x_BN: Tensor, gain_N: Tensor, rows: Tensor | None, step: int) -> Tensor:
        step = min(step, len(self.running_mean) - 1)
        mean, var = self.running_mean[step], self.running_var[step]
        x = x_BN if rows is None else x_BN[rows]
        own = self.training and len(x) > 1
        if self.unfused:
            y = self._in_operators(x, mean, var, own) * gain_N
        else:
            y = F.batch_norm(x, mean, var, gain_N, None, own, self.momentum, EPS)
        return y if rows is None else y.new_zeros(x_BN.shape).index_copy(0, rows, y)

    def _in_operators(self, x: Tensor, mean: Tensor, var: Tensor, own: bool) -> Tensor:
        """Without the gain; ``mean`` and ``var``, rows of the running statistics, follow ``x`` in place.

        Computed in float32 and rounded once, as torch's own.
        """
        wide = x.float()
        if own:
            centre = wide.mean(0)
            spread = (wide - centre).square().mean(0)
            with torch.no_grad():
                mean.lerp_(centre, self.momentum)
                var.lerp_(spread * len(x) / (len(x) - 1), self.momentum)  # unbiased, as torch keeps it
            mean, var = centre, spread
        return ((wide - mean) * torch.rsqrt(var + EPS)).type_as(x)
