"""BatchNorm: statistics of each channel over the examples of a batch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.norms.base import Normaliser, mark
from rmsnorm_lab.experiments.recipes.common import EPS


class Batch(Normaliser):
    """BatchNorm of the last dimension's channels, of feature maps' channels, or within a recurrence."""

    over_examples = True
    biased = ("cell",)

    def make_layer(self, width: int) -> nn.Module:
        return UnfusedBatchNorm(width) if self.kernels == "unfused" else BatchNorm(width)

    def make_channels(self, width: int, spatial: bool) -> nn.Module:
        if not spatial:
            return self.make_layer(width)
        # torch's own takes channels second.
        return ChannelsLast(self.make_layer(width)) if self.kernels == "unfused" else nn.BatchNorm2d(width, eps=EPS)

    def step_norm(self, width: int) -> nn.Module:
        return mark(StepBatchNorm(width, unfused=self.kernels == "unfused"))


class BatchEverywhere(Batch):
    """BatchNorm-Everywhere of Cooijmans et al. 2017: in the attention and the read-out, too."""

    everywhere = True


class BatchNorm(nn.BatchNorm1d):
    """Statistics of each channel over everything but the last dimension; running ones in evaluation."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=EPS)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(self._rows(input)).view(input.shape)

    def _rows(self, input: Tensor) -> Tensor:
        rows = input.reshape(-1, input.shape[-1])
        if self.training and len(rows) < 2:
            raise UserError(
                f"BatchNorm must see 2 examples or more at once in training; got {len(rows)}. Set train.batch to more, "
                "train.accumulate to less, or take fewer processes."
            )
        return rows


class UnfusedBatchNorm(BatchNorm):
    """The same in framework operators."""

    def forward(self, input: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        assert mean is not None
        assert var is not None
        assert self.momentum is not None
        x = self._rows(input).float()
        if self.training:
            batch_mean = x.mean(0)
            batch_var = (x - batch_mean).square().mean(0)
            with torch.no_grad():
                mean.lerp_(batch_mean, self.momentum)
                var.lerp_(batch_var * len(x) / max(len(x) - 1, 1), self.momentum)  # unbiased, as torch keeps it
            mean, var = batch_mean, batch_var
        y = (x - mean) * torch.rsqrt(var + self.eps) * self.weight + self.bias
        return y.view(input.shape).type_as(input)


class ChannelsLast(nn.Module):
    """A normaliser of the last dimension, for channels that come second: (N, C, …)."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x.movedim(1, -1))
        return normed.movedim(-1, 1)


class StepBatchNorm(nn.Module):
    """Within a recurrence the statistics of each time step are its own (Cooijmans et al. 2017, §3):
    (x − mean_t) / √(var_t + eps) ⊙ gain (+ bias) for each feature, over the examples that still run at step t.

    (x_BN, gain_N, their indices or None, t, bias_N or None) -> (B, N), 0 for those that do not. Evaluation uses running
    statistics of each step; steps from ``max_steps`` on share the last one's. So does training where fewer than two
    examples still run: their own statistics would make them 0.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, unfused: bool, max_steps: int = 512, momentum: float = 0.1) -> None:
        super().__init__()
        self.unfused, self.momentum = unfused, momentum
        self.register_buffer("running_mean", torch.zeros(max_steps, width))
        self.register_buffer("running_var", torch.ones(max_steps, width))

    def forward(
        self, x_BN: Tensor, gain_N: Tensor, rows: Tensor | None, step: int, bias_N: Tensor | None = None
    ) -> Tensor:
        step = min(step, len(self.running_mean) - 1)
        mean, var = self.running_mean[step], self.running_var[step]
        x = x_BN if rows is None else x_BN[rows]
        own = self.training and len(x) > 1
        if self.unfused:
            y = self._in_operators(x, mean, var, own) * gain_N
            y = y if bias_N is None else y + bias_N
        else:
            y = F.batch_norm(x, mean, var, gain_N, bias_N, own, self.momentum, EPS)
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
