"""The norms with one statistic a row: L2-Norm, LayerNorm, RMSNorm and pRMSNorm, in the three kernel settings."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmsnorm.spec import partial_count
from rmsnorm.torch import LayerNorm, RMSNorm, layer_norm, rms_norm
from rmsnorm_lab.experiments.norms.base import PLACES, Normaliser, VectorNorm
from rmsnorm_lab.experiments.recipes.common import EPS


class Rows(Normaliser):
    """x̂ = x / √(σ² + eps) over the last dimension, σ² being the mean of squares unless a subclass says otherwise."""

    bias = False
    """Whether its layer has a bias."""

    def centred(self, x: Tensor) -> Tensor:
        return x

    def square(self, x: Tensor) -> Tensor:
        """σ² of each row of ``x``, (..., 1)."""
        return x.square().mean(-1, keepdim=True)

    def fused(self, x: Tensor, gain: Tensor | None, bias: Tensor | None = None) -> Tensor:
        """x̂ ⊙ gain (+ bias) by a kernel."""
        raise NotImplementedError

    def fused_layer(self, width: int) -> nn.Module:
        raise NotImplementedError

    def standardise(self, x: Tensor) -> Tensor:
        """x̂ in framework operators. 16-bit inputs are computed in float32 and rounded once."""
        wide = self.centred(x.float() if x.dtype in (torch.float16, torch.bfloat16) else x)
        return (wide * torch.rsqrt(self.square(wide) + EPS)).type_as(x)

    def unfused(self, x: Tensor, gain: Tensor | None, bias: Tensor | None = None) -> Tensor:
        """x̂ ⊙ gain (+ bias) in framework operators."""
        y = self.standardise(x) if gain is None else self.standardise(x) * gain
        return y if bias is None else y + bias

    def vector(self) -> VectorNorm:
        return self.unfused if self.kernels == "unfused" else self.fused

    def make_layer(self, width: int) -> nn.Module:
        return Unfused(width, self.standardise, self.bias) if self.kernels == "unfused" else self.fused_layer(width)


class Unfused(nn.Module):
    """y = x̂ ⊙ weight (+ bias) in framework operators."""

    def __init__(self, width: int, standardise: Callable[[Tensor], Tensor], bias: bool) -> None:
        super().__init__()
        self.standardise = standardise
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.standardise(x) * self.weight
        return (y if self.bias is None else y + self.bias).type_as(x)


class Layer(Rows):
    """LayerNorm: σ² is of x minus its mean. "best" is torch's own."""

    bias = True
    biased = PLACES

    def centred(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True)

    def fused(self, x: Tensor, gain: Tensor | None, bias: Tensor | None = None) -> Tensor:
        function = F.layer_norm if self.kernels == "best" else layer_norm
        return function(x, (x.shape[-1],), gain, bias, EPS)

    def fused_layer(self, width: int) -> nn.Module:
        return (nn.LayerNorm if self.kernels == "best" else LayerNorm)(width, eps=EPS)

    def recurrence(self) -> dict[str, Any] | None:
        return {"norm": "layer", "eps": EPS} if self.kernels == "rmsnorm" else None


class RMS(Rows):
    """RMSNorm."""

    share = 1.0
    """The part of the elements that σ² is of."""

    def fused(self, x: Tensor, gain: Tensor | None, bias: Tensor | None = None) -> Tensor:
        assert bias is None  # it is not ``biased``
        return rms_norm(x, (x.shape[-1],), gain, EPS, p=self.share)

    def fused_layer(self, width: int) -> nn.Module:
        return RMSNorm(width, eps=EPS, p=self.share)

    def recurrence(self) -> dict[str, Any] | None:
        return None if self.kernels == "unfused" else {"norm": "rms", "p": self.share, "eps": EPS}


class TorchRMS(Rows):
    """RMSNorm by torch's own operator, in every setting with kernels."""

    def fused(self, x: Tensor, gain: Tensor | None, bias: Tensor | None = None) -> Tensor:
        assert bias is None  # it is not ``biased``
        return F.rms_norm(x, (x.shape[-1],), gain, EPS)

    def fused_layer(self, width: int) -> nn.Module:
        return nn.RMSNorm(width, eps=EPS)


class PartialRMS(RMS):
    """pRMSNorm: σ² is of the first k = ⌈n·p⌉ elements."""

    def __init__(self, kernels: str, p: float) -> None:
        super().__init__(kernels, p)
        self.share = p

    def square(self, x: Tensor) -> Tensor:
        return super().square(x[..., : partial_count(x.shape[-1], self.share)])


class L2(Rows):
    """L2-Norm: σ² is the sum of squares. As a function of a vector it has no kernel."""

    def square(self, x: Tensor) -> Tensor:
        return x.square().sum(-1, keepdim=True)

    def vector(self) -> VectorNorm:
        return self.unfused

    def fused_layer(self, width: int) -> nn.Module:
        return L2Norm(width)


class L2Norm(nn.Module):
    """y = x / √(Σ x² + eps) ⊙ weight by this project's kernel: RMSNorm with the gain weight / √n and eps / n."""

    def __init__(self, width: int, eps: float = EPS) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[-1]
        return rms_norm(x, (n,), self.weight / math.sqrt(n), self.eps / n)
