"""The normalisers under comparison, by name and by whose kernels: modules over the last dimension."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from rmsnorm.torch import LayerNorm, RMSNorm, rms_norm
from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.recipes.common import EPS, P
from rmsnorm_lab.experiments.vector_norms import standardise

GROUPS = 8
"""Of channels in GroupNorm (as many as divide the width)."""


class UnfusedNorm(nn.Module):
    """y = x̂ ⊙ weight (+ bias for "layer") in framework operators, x̂ being :func:`vector_norms.standardise`'s."""

    def __init__(self, width: int, norm: str, p: float = P) -> None:
        super().__init__()
        self.norm, self.p = norm, p
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if norm == "layer" else None

    def forward(self, x: Tensor) -> Tensor:
        y = standardise(x, self.norm, self.p) * self.weight
        return (y if self.bias is None else y + self.bias).type_as(x)


class L2Norm(nn.Module):
    """y = x / √(Σ x² + eps) ⊙ weight by this project's kernel: RMSNorm with the gain weight / √n and eps / n."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[-1]
        return rms_norm(x, (n,), self.weight / math.sqrt(n), EPS / n)


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
    """The same, an operator a step."""

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
    """The same, an operator a step."""

    def forward(self, x: Tensor) -> Tensor:
        parts = x.float().unflatten(-1, (self.groups, -1))
        centred = parts - parts.mean(-1, keepdim=True)
        scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + EPS)
        return ((centred * scale).flatten(-2) * self.weight + self.bias).type_as(x)


class DyT(nn.Module):
    """y = tanh(alpha·x) ⊙ weight + bias, without any statistic (Zhu et al. 2025, "Transformers without
    Normalization"); alpha starts at 0.5."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), 0.5))
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return (torch.tanh(self.alpha * x) * self.weight + self.bias).type_as(x)


def _identity(width: int) -> nn.Module:
    return nn.Identity()


def norm_maker(norm: str, kernels: str, p: float = P) -> Callable[[int], nn.Module]:
    """The function from a width to the module that normalises the last dimension.

    Args:
        norm: one of recipes.common.NORMS. "weight" is the identity here: :func:`normalize_weights`.
        kernels: one of recipes.common.KERNELS. Only "layer", "rms", "prms" and "l2" have kernels of this project;
            torch's own serve the others, but for "unfused".
        p: of pRMSNorm.
    """
    makers: dict[str, Callable[[int], nn.Module]] = {"none": _identity, "weight": _identity, "dyt": DyT}
    if kernels == "unfused":
        makers |= {
            "batch": UnfusedBatchNorm,
            "group": UnfusedGroupNorm,
            **{norm: partial(UnfusedNorm, norm=norm, p=p) for norm in ("l2", "layer", "rms", "prms")},
        }
    else:
        makers |= {
            "l2": L2Norm,
            "batch": BatchNorm,
            "group": GroupNorm,
            "layer": partial(nn.LayerNorm if kernels == "best" else LayerNorm, eps=EPS),
            "rms": partial(RMSNorm, eps=EPS),
            "prms": partial(RMSNorm, eps=EPS, p=p),
        }
    return makers[norm]


def normalize_weights(model: nn.Module, but_for: tuple[str, ...] = ()) -> None:
    """WeightNorm: w = g · v / ‖v‖ for the weight of every linear and convolutional layer, in place.

    Called after initialisation: the weights stay what they were drawn to be, g being their norm for each output.
    ``but_for`` names submodules that are left alone (the logits).
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)) and name not in but_for:
            parametrizations.weight_norm(module)
