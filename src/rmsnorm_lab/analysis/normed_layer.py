"""One normalised layer, y = norm(W x), with a normaliser of the experiments, in float64. The analyses measure it.

Legend of the shape suffixes: N cases, I inputs, O outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rmsnorm_lab.experiments import norms
from rmsnorm_lab.experiments.norms.base import Normaliser

IN_TABLE_1 = ("batch", "weight", "layer", "rms", "prms")
EPS = 1e-300
"""As good as 0, which torch's batch norm refuses: added to a variance here it changes no bit."""


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


class NormedLayer(nn.Module):
    """x_NI -> norm(W x), (N, O), with the normaliser's parameters at their start and, in each ``eps``, EPS.

    BatchNorm takes its statistics over the N cases, as in training. Of WeightNorm, W is the direction, and its gain 1.
    """

    def __init__(self, norm: Normaliser, sizes: Sizes) -> None:
        super().__init__()
        self.linear = nn.Linear(sizes.inputs, sizes.outputs, bias=False)
        norm.parametrise(self.linear)
        self.weight_name = "linear.weight"
        if parametrize.is_parametrized(self.linear):
            nn.init.ones_(self.linear.parametrizations.weight.original0)  # type: ignore[union-attr, arg-type]
            self.weight_name = "linear.parametrizations.weight.original1"
        self.norm = norm.layer(sizes.outputs)
        with_eps = [module for module in self.modules() if isinstance(getattr(module, "eps", None), float)]
        for module in with_eps:
            module.eps = EPS  # type: ignore[assignment]
        self.has_eps = bool(with_eps)
        self.double()

    def forward(self, x_NI: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.linear(x_NI))
        return normed

    def output(self, draw: Draw, x_NI: Tensor, w_OI: Tensor) -> Tensor:
        """y = norm(W x) ⊙ g + b, (N, O), with the gain and the bias of the draw."""
        y_NO: Tensor = torch.func.functional_call(self, {self.weight_name: w_OI}, (x_NI,))
        return y_NO * draw.g_O + draw.b_O

    def gradient(self, draw: Draw, x_NI: Tensor, w_OI: Tensor) -> Tensor:
        """∂L/∂W, (O, I), for a loss whose gradient at the output is the draw's, whatever x and W are."""
        weight = w_OI.detach().requires_grad_()
        y_NO = self.output(draw, x_NI, weight)
        if not y_NO.requires_grad:  # the user's own norm may be a constant
            return torch.zeros_like(weight)
        (found,) = torch.autograd.grad(y_NO, weight, draw.u_NO, materialize_grads=True)
        return found


def layers(sizes: Sizes, own: Sequence[str] = ()) -> dict[str, NormedLayer]:
    """The layer of each normaliser: the paper's Table 1, the others in the order of tables, the user's ``own``."""
    others = (n.name for n in norms.REGISTRY.values() if n.name not in IN_TABLE_1 and not (n.source or n.layer_of))
    names = [*IN_TABLE_1, *others, *own]
    return {name: NormedLayer(norms.made(name, "rmsnorm"), sizes) for name in names}


def without_eps(sizes: Sizes, own: Sequence[str]) -> list[str]:
    """Those of the user's norms in which no ``eps`` was found: a literal such as 1e-5 in one stays as it is."""
    return [name for name in own if not NormedLayer(norms.made(name, "rmsnorm"), sizes).has_eps]
