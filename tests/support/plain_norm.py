"""RMSNorm as a plain expression, and arguments for derivatives."""

import torch

N = 5


def plain(x, shape, weight=None, eps=0.0, *, bias=None, p=1.0, zero_centered=False, casting="once"):
    """The definition, written so that autograd has nothing to go wrong with."""
    k = {1.0: x.shape[-1], 0.5: -(-x.shape[-1] // 2)}[p]
    y = x / torch.sqrt(x[..., :k].pow(2).mean(-1, keepdim=True) + eps)
    if weight is not None:
        y = y * ((1 + weight) if zero_centered else weight)
    return y if bias is None else y + bias


def draw(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64).to(dtype).requires_grad_()


def arguments(dtype=torch.float64):
    return draw(4, N, dtype=dtype), draw(N, dtype=dtype), draw(N, dtype=dtype)
