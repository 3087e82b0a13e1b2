"""Batch norm inside a recurrence: the statistics of each time step are its own (Cooijmans et al. 2017, §3)."""

import torch
from torch import Tensor, nn

from rmsnorm.experiments.recipes.common import EPS


def active(lengths_B: Tensor, steps: int) -> Tensor:
    """(T, B): whether sequence b still runs at step t."""
    return torch.arange(steps, device=lengths_B.device)[:, None] < lengths_B


class StepBatchNorm(nn.Module):
    """(x − mean_t) / √(var_t + eps) for each feature, over the examples that still run at step t; no gain, no bias.

    (x_TBN, mask_TB or None, the first row's step) -> the shape of x. Evaluation uses running statistics of each step;
    steps from ``max_steps`` on share the last one's. So does training where fewer than two examples still run: their
    own statistics would make them 0.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, max_steps: int = 512, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(max_steps, width))
        self.register_buffer("running_var", torch.ones(max_steps, width))

    def forward(self, x_TBN: Tensor, mask_TB: Tensor | None, step: int) -> Tensor:
        rows_T = torch.arange(step, step + len(x_TBN), device=x_TBN.device).clamp(max=len(self.running_mean) - 1)
        running = (self.running_mean[rows_T, None], self.running_var[rows_T, None])
        if not self.training:
            mean_T1N, var_T1N = running
        else:
            mask_TB1 = torch.ones_like(x_TBN[..., :1]) if mask_TB is None else mask_TB[..., None].type_as(x_TBN)
            count_T11 = mask_TB1.sum(1, keepdim=True)
            own_mean = (x_TBN * mask_TB1).sum(1, keepdim=True) / count_T11.clamp(min=1)
            own_var = ((x_TBN - own_mean).square() * mask_TB1).sum(1, keepdim=True) / count_T11.clamp(min=1)
            enough = count_T11 > 1
            mean_T1N, var_T1N = torch.where(enough, own_mean, running[0]), torch.where(enough, own_var, running[1])
            with torch.no_grad():
                self.running_mean[rows_T] += self.momentum * (mean_T1N - running[0])[:, 0]
                unbiased = torch.where(enough, own_var * count_T11 / (count_T11 - 1).clamp(min=1), running[1])
                self.running_var[rows_T] += self.momentum * (unbiased - running[1])[:, 0]
        return (x_TBN - mean_T1N) * torch.rsqrt(var_T1N + EPS)
