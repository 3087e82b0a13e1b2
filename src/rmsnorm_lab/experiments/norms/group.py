"""GroupNorm (Wu & He 2018): LayerNorm within equal groups of the channels."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmsnorm_lab.experiments.norms.base import Normaliser
from rmsnorm_lab.experiments.recipes.common import EPS

GROUPS = 8
"""Of the channels (as many as divide the width)."""


class Group(Normaliser):
    """GroupNorm of the last dimension's channels."""

    def make_layer(self, width: int) -> nn.Module:
        return UnfusedGroupNorm(width) if self.kernels == "unfused" else GroupNorm(width)


class GroupNorm(nn.Module):
    """LayerNorm within each of GROUPS equal groups of the last dimension's channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.groups = math.gcd(GROUPS, width)
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        return F.group_norm(rows, self.groups, self.weight, self.bias, EPS).view(x.shape)


class UnfusedGroupNorm(GroupNorm):
    """The same in framework operators."""

    def forward(self, x: Tensor) -> Tensor:
        parts = x.float().unflatten(-1, (self.groups, -1))
        centred = parts - parts.mean(-1, keepdim=True)
        scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + EPS)
        return ((centred * scale).flatten(-2) * self.weight + self.bias).type_as(x)
