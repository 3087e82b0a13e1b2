"""GroupNorm (Wu & He 2018): LayerNorm within equal groups of the channels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmsnorm_lab.experiments.norms.base import Normaliser
from rmsnorm_lab.experiments.recipes.common import EPS

GROUPS, LEAST = 8, 3
"""Groups, and the fewest channels of one: of two channels only the sign of their difference is left."""


class Group(Normaliser):
    """GroupNorm of the last dimension's channels."""

    def make_layer(self, width: int) -> nn.Module:
        return UnfusedGroupNorm(width) if self.kernels == "unfused" else GroupNorm(width)


def groups_of(width: int) -> int:
    """GROUPS, halved until the groups are equal and have LEAST channels or more."""
    groups = GROUPS
    while groups > 1 and (width % groups or width // groups < LEAST):
        groups //= 2
    return groups


class GroupNorm(nn.Module):
    """LayerNorm within each of equal groups of the last dimension's channels."""

    def __init__(self, width: int, eps: float = EPS) -> None:
        super().__init__()
        self.groups, self.eps = groups_of(width), eps
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        return F.group_norm(rows, self.groups, self.weight, self.bias, self.eps).view(x.shape)


class UnfusedGroupNorm(GroupNorm):
    """The same in framework operators."""

    def forward(self, x: Tensor) -> Tensor:
        parts = x.float().unflatten(-1, (self.groups, -1))
        centred = parts - parts.mean(-1, keepdim=True)
        scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + self.eps)
        return ((centred * scale).flatten(-2) * self.weight + self.bias).type_as(x)
