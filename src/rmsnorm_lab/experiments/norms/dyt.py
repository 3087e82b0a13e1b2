"""DyT, which replaces a norm by an element-wise function (Zhu et al. 2025, "Transformers without Normalization")."""

import torch
from torch import Tensor, nn

from rmsnorm_lab.experiments.norms.base import Normaliser


class DyT(Normaliser):
    """The same operators in every kernel setting."""

    def make_layer(self, width: int) -> nn.Module:
        return DynamicTanh(width)


class DynamicTanh(nn.Module):
    """y = tanh(alpha·x) ⊙ weight + bias, without any statistic; alpha starts at 0.5."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), 0.5))
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return (torch.tanh(self.alpha * x) * self.weight + self.bias).type_as(x)
