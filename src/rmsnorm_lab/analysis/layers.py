"""One normalised layer, y = norm(W x), with each normaliser, in float64 and with eps = 0. The analyses measure it.

RMSNorm, pRMSNorm and LayerNorm are this project's kernels; the others are written out. Legend of the shape suffixes:
N cases, I inputs, O outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rmsnorm.torch import layer_norm, rms_norm
from rmsnorm_lab.experiments.recipes.common import P

NORMS = ("batch", "weight", "layer", "rms", "prms", "none", "l2", "group", "dyt")
"""In the order of the paper's Table 1, then those that it does not have."""
GROUPS = 2
DYT_ALPHA = 0.5  # its authors' initial value


@dataclass(frozen=True)
class Sizes:
    """The size of the random layer and its data."""

    cases: int = 32
    inputs: int = 48
    outputs: int = 64


@dataclass(frozen=True)
class Draw:
    """One random layer and its data. Nothing has mean 0 or scale 1, which could hide a dependence on mean or scale."""

    x_NI: Tensor
    w_OI: Tensor
    g_O: Tensor
    b_O: Tensor
    u_NO: Tensor
    """∂L/∂y."""

    @staticmethod
    def random(sizes: Sizes, generator: torch.Generator) -> "Draw":
        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        return Draw(
            x_NI=0.5 + 2 * normal(sizes.cases, sizes.inputs),
            w_OI=0.1 + normal(sizes.outputs, sizes.inputs) / sizes.inputs**0.5,
            g_O=1 + 0.3 * normal(sizes.outputs),
            b_O=normal(sizes.outputs),
            u_NO=normal(sizes.cases, sizes.outputs),
        )


def output(norm: str, draw: Draw, x_NI: Tensor, w_OI: Tensor) -> Tensor:
    """y = norm(W x) ⊙ g + b, (N, O), of the layer in ``draw`` with the given inputs and weights.

    BatchNorm computes its statistics over the N cases, as in training; WeightNorm divides each row of W by its length.
    """
    return _NORMS[norm](x_NI, w_OI) * draw.g_O + draw.b_O


def gradient(norm: str, draw: Draw, x_NI: Tensor, w_OI: Tensor) -> Tensor:
    """∂L/∂W, (O, I), for a loss whose gradient at the output is the draw's, whatever x and W are."""
    weight = w_OI.detach().requires_grad_()
    (found,) = torch.autograd.grad(output(norm, draw, x_NI, weight), weight, draw.u_NO)
    return found


def _after_product(normalise: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x_NI, w_OI: normalise(F.linear(x_NI, w_OI))


def _batch(a_NO: Tensor) -> Tensor:  # F.batch_norm refuses eps = 0
    centred = a_NO - a_NO.mean(0)
    return centred / centred.square().mean(0).sqrt()


def _weight(x_NI: Tensor, w_OI: Tensor) -> Tensor:
    return F.linear(x_NI, w_OI / torch.linalg.vector_norm(w_OI, dim=1, keepdim=True))


_NORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": F.linear,
    "batch": _after_product(_batch),
    "weight": _weight,
    "layer": _after_product(lambda a: layer_norm(a, (a.shape[1],), eps=0.0)),
    "rms": _after_product(lambda a: rms_norm(a, (a.shape[1],), eps=0.0)),
    "prms": _after_product(lambda a: rms_norm(a, (a.shape[1],), eps=0.0, p=P)),
    "l2": _after_product(lambda a: a / torch.linalg.vector_norm(a, dim=1, keepdim=True)),
    "group": _after_product(lambda a: F.group_norm(a, GROUPS, eps=0.0)),
    "dyt": _after_product(lambda a: torch.tanh(DYT_ALPHA * a)),
}
