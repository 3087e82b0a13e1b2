"""The normalisers under comparison, by name, in this project's kernels or in torch's own."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rmsnorm.experiments.recipes import EPS, P
from rmsnorm.torch import LayerNorm, RMSNorm


class CompositePRMSNorm(nn.Module):
    """pRMSNorm in framework operations, because torch has no kernel for it.

    y = x / √(1/k Σ_{i<k} x_i² + eps) ⊙ weight over the first k = ⌈n·p⌉ elements. The statistic is taken in float32.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        numerator, denominator = P.as_integer_ratio()  # 1/16 is exact in binary, so the ceiling is exact too
        self.k = -(-width * numerator // denominator)
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide[..., : self.k].square().mean(-1, keepdim=True) + EPS)
        return (wide * scale * self.weight).type_as(x)


def _identity(width: int) -> nn.Module:
    return nn.Identity()


_BUILDERS: dict[str, dict[str, Callable[[int], nn.Module]]] = {
    "rmsnorm": {
        "none": _identity,
        "layer": lambda width: LayerNorm(width, eps=EPS),
        "rms": lambda width: RMSNorm(width, eps=EPS),
        "prms": lambda width: RMSNorm(width, eps=EPS, p=P),
    },
    "torch": {
        "none": _identity,
        "layer": lambda width: nn.LayerNorm(width, eps=EPS),
        "rms": lambda width: nn.RMSNorm(width, eps=EPS),
        "prms": CompositePRMSNorm,
    },
}


def norm_maker(norm: str, kernels: str) -> Callable[[int], nn.Module]:
    """The function from a width to the module ``norm`` (one of recipes.NORMS) in ``kernels`` (recipes.KERNELS)."""
    return _BUILDERS[kernels][norm]
