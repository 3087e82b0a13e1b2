"""Norms with a gate, forward(x, gate): Mamba-2's and Qwen3-Next's, in their own orders of rounding.

``rms_norm_gated`` rounds once. Where a module rounds x̂ before the gain, the norm is a kernel and the rest of the
expression are torch's operations, in the module's order.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmsnorm.torch.functional import rms_norm, rms_norm_gated
from rmsnorm.torch.swap.conventions import NOT_COMPARED, Inputs, Names, Pair

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "sigmoid": torch.sigmoid}


@dataclass(frozen=True)
class GatedConvention:
    """What reproduces a norm with a gate."""

    names: Names
    eps: float
    eps_name: str | None
    n: int
    groups: int
    norm_before_gate: bool
    activation: str
    inputs: Inputs = NOT_COMPARED
    pairs: tuple[tuple[Pair, str], ...] = ()
    """The pairs of dtypes that were verified, the gate being of the input's, and the casting of each."""
    norm: str = "rms"

    @property
    def orders(self) -> tuple[str, ...]:
        """The castings that are tried."""
        return "once", "llama"

    @functools.cached_property
    def castings(self) -> dict[Pair, str]:
        """``pairs`` to look up."""
        return dict(self.pairs)

    def __call__(self, module: nn.Module, *inputs: Tensor) -> Tensor | None:
        """The module's result, or None where it must compute that itself."""
        weight = module._parameters.get(self.names.weight or "")
        if len(inputs) != 2 or weight is None or not all(isinstance(t, Tensor) and t.is_cpu for t in inputs):
            return None
        x, gate = inputs
        casting = self.castings.get((x.dtype, weight.dtype))
        if casting is None or gate.dtype != x.dtype or gate.shape != x.shape or x.shape[-1:] != (self.n,):
            return None
        if not (self.inputs.include(x) and self.inputs.include(gate)):
            return None
        eps = self.eps if self.eps_name is None else getattr(module, self.eps_name)
        return self.compute(x, gate, weight, casting, eps) if eps >= 0 else None

    def compute(self, x: Tensor, gate: Tensor, weight: Tensor, casting: str, eps: float) -> Tensor:
        """The result from tensors."""
        if casting == "once" and self.activation == "silu":
            first = self.norm_before_gate
            return rms_norm_gated(x, gate, (self.n,), weight, eps, norm_before_gate=first, groups=self.groups)
        gate = ACTIVATIONS[self.activation](gate.float())
        if self.norm_before_gate:
            y = self._norm(x if casting == "llama" else x.float(), weight, eps, casting)
            return (y * gate).to(x.dtype)
        h = x.float() * gate
        if casting == "llama":
            return weight * self._norm(h, None, eps, "once").to(x.dtype)
        return self._norm(h, weight, eps, "once").to(x.dtype)

    def _norm(self, x: Tensor, weight: Tensor | None, eps: float, casting: str) -> Tensor:
        """With a statistic for each group, whose gain is that of a head."""
        m = self.n // self.groups
        if self.groups == 1:
            return rms_norm(x, (m,), weight, eps, casting=casting)
        gain = None if weight is None else weight.view(self.groups, m)
        return rms_norm(x.unflatten(-1, (self.groups, m)), (m,), gain, eps, casting=casting).flatten(-2)

    def __str__(self) -> str:
        parts = ["norm_before_gate"] if self.norm_before_gate else []
        parts += [f"groups={self.groups}"] if self.groups > 1 else []
        parts += [] if self.activation == "silu" else [self.activation]
        castings = sorted({casting for _, casting in self.pairs} - {"once"})
        parts += [f"casting={'/'.join(castings)}"] if castings else []
        return f"rms_norm_gated({', '.join(['weight', *parts])})"
