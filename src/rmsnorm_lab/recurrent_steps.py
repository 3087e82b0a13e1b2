"""One step of a GRU and of an LSTM in torch's operations, from both sides after their norms and biases.

The loops of the experiments and of the benchmark share these two functions.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Side = tuple[Tensor, Tensor]
"""The gates r and z together, (..., 2H), and the proposal n, (..., H)."""


def gru_step(a: Side, c: Side, h: Tensor) -> Tensor:
    """h' = (1 − z) ⊙ n + z ⊙ h from the input's side a and the state's side c."""
    r, z = torch.sigmoid(a[0] + c[0]).chunk(2, dim=-1)
    return torch.lerp(torch.tanh(torch.addcmul(a[1], r, c[1])), h, z)


def lstm_step(sides: Tensor, m: Tensor, normalise: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """(h', m') from the sum of both sides (..., 4H) and the cell state m, which is normalised before its tanh."""
    i, f, g, o = sides.chunk(4, dim=-1)
    m = torch.sigmoid(f) * m + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(normalise(m)), m
