"""Norms as models write them, and random parameters for a module."""

import torch
import torch.nn.functional as F
from torch import nn


class Norm(nn.Module):
    """x / RMS(x) · gain; what follows changes one thing of it."""

    def __init__(self, n=24, eps=1e-6, name="weight"):
        super().__init__()
        self.eps, self.name = eps, name
        self.register_parameter(name, nn.Parameter(torch.randn(n)))

    def forward(self, x):
        return self.normed(x.float()).type_as(x) * getattr(self, self.name)

    def normed(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


class Gated(Norm):
    """Every order that transformers has: of the gate and the norm, of rounding and the gain."""

    def __init__(self, first=True, groups=1, activation=F.silu, llama=True):
        super().__init__()
        self.first, self.groups, self.activation, self.llama = first, groups, activation, llama

    def forward(self, x, gate):
        gate = self.activation(gate.float())
        f = x.float() if self.first else x.float() * gate
        f = self.normed(f.unflatten(-1, (self.groups, -1))).flatten(-2)
        f = self.weight * f.to(x.dtype) if self.llama else self.weight.float() * f
        return (f * gate).to(x.dtype) if self.first else f if self.llama else f.to(x.dtype)


class Dropped(Norm):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.5, self.training)


def weighted(module: nn.Module) -> nn.Module:
    """With random parameters: at their first values gain and bias do nothing."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module
