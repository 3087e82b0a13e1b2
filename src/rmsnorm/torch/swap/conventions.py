"""What a norm in a model computes, as a call of this project's functions."""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rmsnorm.torch.functional import layer_norm, rms_norm

Pair = tuple[torch.dtype, torch.dtype]
"""The dtypes of the input and the gain; of the input twice where there is no gain."""

PAIRS: tuple[Pair, ...] = tuple(
    (getattr(torch, x), getattr(torch, w))
    for x, w in (
        ("float32", "float32"),
        ("bfloat16", "bfloat16"),
        ("bfloat16", "float32"),
        ("float16", "float16"),
        ("float16", "float32"),
        ("float32", "bfloat16"),
    )
)
"""The pairs that are tried. Others take the module's own forward."""

CASTINGS = {"rms": ("once", "llama", "float32"), "layer": ("once",)}
"""The orders of rounding that are tried. float32: the result stays in float32, as T5 has it for a gain in float32."""


class Names(NamedTuple):
    """The parameters of the module that are the gain and the bias."""

    weight: str | None
    bias: str | None


class Inputs(NamedTuple):
    """What the inputs were on which a module was compared. For others its own forward runs."""

    ranks: tuple[int, ...] = ()
    """The numbers of their dimensions."""
    ranks_with_equal_extents: tuple[int, ...] = ()
    """Those at which an outer extent was also that of the normalised dimension."""
    strided: bool = False
    """Whether the results of inputs that are not contiguous had the module's values and strides."""
    autocast: bool = False
    """Whether it computes the same under autocast."""

    def include(self, x: Tensor) -> bool:
        """Whether ``x`` is like one that was compared."""
        if x.is_nested:
            return False
        shape = x.shape
        return (
            len(shape) in (self.ranks_with_equal_extents if shape[-1] in shape[:-1] else self.ranks)
            and (self.strided or x.is_contiguous())
            and (self.autocast or not torch.is_autocast_enabled("cpu"))
        )


NOT_COMPARED = Inputs()


@dataclass(frozen=True)
class Convention:
    """The one of :func:`rms_norm` or :func:`layer_norm` that reproduces a module, with its arguments."""

    norm: str
    """``"rms"`` or ``"layer"``."""
    names: Names
    eps: float
    eps_name: str | None
    """The module's attribute that eps is read from at each call; None: it is ``eps``."""
    gain: str = "weight"
    """``"weight"``; ``"1 + weight"`` in float32; ``"(1 + weight)"`` rounded to the weight's dtype first."""
    p: float = 1.0
    shape: tuple[int, ...] | None = None
    """The normalised dimensions; None: the last one, whatever its length."""
    inputs: Inputs = NOT_COMPARED
    pairs: tuple[tuple[Pair, str], ...] = ()
    """The pairs of dtypes that were verified, and the casting of each."""

    @property
    def orders(self) -> tuple[str, ...]:
        """The castings that are tried."""
        return CASTINGS[self.norm]

    @functools.cached_property
    def castings(self) -> dict[Pair, str]:
        """``pairs`` to look up."""
        return dict(self.pairs)

    def __call__(self, module: torch.nn.Module, *inputs: Tensor) -> Tensor | None:
        """The module's result, or None where it must compute that itself."""
        if len(inputs) != 1:
            return None
        (x,) = inputs
        weight = bias = None
        if self.names.weight is not None:
            weight = module._parameters.get(self.names.weight)
            if weight is None:
                return None
        if self.names.bias is not None:
            bias = module._parameters.get(self.names.bias)
            if bias is None:
                return None
        if not isinstance(x, Tensor) or not x.is_cpu:
            return None
        casting = self.castings.get((x.dtype, x.dtype if weight is None else weight.dtype))
        if casting is None or not self._fits(x, weight):
            return None
        eps = self._eps(module)
        return self.compute(x, weight, bias, casting, eps) if eps >= 0 else None

    def compute(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, casting: str, eps: float) -> Tensor:
        """The result from tensors."""
        shape = self.shape or x.shape[-1:]
        if weight is not None and self.gain == "(1 + weight)":
            weight = weight + 1
        if self.norm == "layer":
            return layer_norm(x, shape, weight, bias, eps)
        if casting == "float32":
            x, casting = x.float(), "once"
        zero_centered = self.gain == "1 + weight"
        return rms_norm(x, shape, weight, eps, bias=bias, p=self.p, zero_centered=zero_centered, casting=casting)

    def _eps(self, module: torch.nn.Module) -> float:
        if self.eps_name is None:
            return self.eps
        eps = getattr(module, self.eps_name)
        return self.eps if eps is None else eps

    def _fits(self, x: Tensor, weight: Tensor | None) -> bool:
        """The module itself says what is wrong with other shapes, or broadcasts them."""
        if not self.inputs.include(x):
            return False
        shape = self.shape or ()
        if weight is not None and weight.dim() > len(shape):  # a gain for each head
            shape = weight.shape
        return x.shape[x.dim() - len(shape) :] == shape

    def __str__(self) -> str:
        name = "layer_norm" if self.norm == "layer" else "rms_norm"
        parts = [] if self.names.weight is None else [self.gain]
        parts += [] if self.names.bias is None else ["bias"]
        parts += [] if self.p == 1.0 else [f"p={self.p:.4g}"]
        castings = sorted({casting for _, casting in self.pairs} - {"once"})
        parts += [f"casting={'/'.join(castings)}"] if castings else []
        return f"{name}({', '.join(parts)})"
