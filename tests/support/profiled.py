"""A model with norms of several kinds, for profile_norms."""

import torch
import torch.nn.functional as F
from torch import nn

X = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))


class Norm(nn.Module):
    """As Hugging Face writes it."""

    def __init__(self, n=16, eps=1e-6):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.rand(n) + 0.5), eps

    def forward(self, x):
        f = x.float()
        return self.weight * (f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + self.eps)).type_as(x)


class ClampedNorm(Norm):
    """No convention reproduces it."""

    def forward(self, x):
        return super().forward(x).clamp(-1, 1)


class GatedNorm(Norm):
    def forward(self, x, gate):
        return super().forward(x * F.silu(gate.float()).to(x.dtype))


class Block(nn.Module):
    """Four norms of three kinds around layers with a gate, noise and running statistics."""

    def __init__(self, n=16):
        super().__init__()
        self.first, self.second, self.odd, self.gated = Norm(n), Norm(n), ClampedNorm(n), GatedNorm(n)
        self.up, self.gate = nn.Linear(n, n), nn.Linear(n, n)
        self.batch_norm, self.dropout = nn.BatchNorm1d(n), nn.Dropout(0.3)
        self.register_buffer("steps", torch.zeros(()))
        self.cache = []

    def forward(self, x):
        self.steps = self.steps + 1  # a new tensor at each call
        self.cache.append(x)
        h = x + self.dropout(self.batch_norm(self.up(self.first(x))))
        h = h + self.gated(h, self.gate(self.second(h)))
        return self.odd(h)
