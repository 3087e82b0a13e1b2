"""The normalisers of a vector as functions of (x, gain), in each of the three kernel settings that are never mixed.

What modules over the last dimension are to a feed-forward network, these are to recurrences and convolutions, where
the gain belongs to the layer and one statistic may cover two gates.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rmsnorm.spec import partial_count
from rmsnorm.torch import layer_norm, rms_norm
from rmsnorm_lab.experiments.recipes.common import EPS, P

VectorNorm = Callable[[Tensor, Tensor | None], Tensor]
"""(x of shape (..., n), gain of shape (n,) or None) -> y of x's shape and dtype."""


def standardise(x: Tensor, norm: str, p: float = P) -> Tensor:
    """x̂ over the last dimension in framework operators, without a gain: the "unfused" setting.

    With σ² the mean of squares (``layer``: of x minus its mean; ``prms``: of the first k = ⌈n·p⌉ elements; ``l2``: the
    sum instead of the mean), x̂ = x / √(σ² + eps). 16-bit inputs are computed in float32 and rounded once.
    """
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    if norm == "layer":
        wide = wide - wide.mean(-1, keepdim=True)
    first = wide[..., : partial_count(x.shape[-1], p)] if norm == "prms" else wide
    squares = first.square().sum(-1, keepdim=True) if norm == "l2" else first.square().mean(-1, keepdim=True)
    return (wide * torch.rsqrt(squares + EPS)).type_as(x)


def vector_norm(norm: str, kernels: str, p: float = P) -> VectorNorm:
    """The function for ``norm`` ("l2", "layer", "rms" or "prms") in ``kernels`` ("rmsnorm", "unfused" or "best").

    ``p`` is that of pRMSNorm. "best" is torch's own LayerNorm beside this project's RMSNorm. L2 has no kernel anywhere:
    operators throughout.
    """
    if kernels == "unfused" or norm == "l2":
        return lambda x, gain: standardise(x, norm, p) if gain is None else standardise(x, norm, p) * gain
    if norm == "layer":
        function = F.layer_norm if kernels == "best" else layer_norm
        return lambda x, gain: function(x, (x.shape[-1],), gain, None, EPS)
    share = p if norm == "prms" else 1.0
    return lambda x, gain: rms_norm(x, (x.shape[-1],), gain, EPS, p=share)
