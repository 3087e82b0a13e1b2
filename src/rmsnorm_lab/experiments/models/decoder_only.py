"""A decoder-only transformer of today's shape: pre-norm, rotary positions, SwiGLU, no biases in the linear layers.

Legend of the shape suffixes: B sequences, T positions, D model width, H heads, K = D / H.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmsnorm_lab.experiments.norms.base import Normaliser, outside_norms
from rmsnorm_lab.experiments.recipes.language import ModelConfig


def rotary_tables(context: int, head_width: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """cos and sin of t·base^(−2i/K) for position t and pair i, both (T, K/2)."""
    frequencies = base ** (-torch.arange(0, head_width, 2) / head_width)
    angles = torch.outer(torch.arange(context).float(), frequencies)
    return angles.cos(), angles.sin()


def rotate(x_BHTK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pair (x_i, x_{i+K/2}) by its position's angle, so that q·k depends on the distance only."""
    a, b = x_BHTK.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).type_as(x_BHTK)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, norm: Normaliser) -> None:
        super().__init__()
        self.heads, self.head_width = config.heads, config.width // config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)
        self.q_norm = norm.layer(self.head_width) if config.qk_norm else nn.Identity()
        self.k_norm = norm.layer(self.head_width) if config.qk_norm else nn.Identity()

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        qkv = self.qkv(x_BTD).view(B, T, 3, self.heads, self.head_width)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        y_BHTK = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y_BHTK.transpose(1, 2).reshape(B, T, D))


class SwiGLU(nn.Module):
    """out(SiLU(gate(x)) ⊙ up(x)), gate and up as one product."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.width, 2 * config.feed_forward, bias=False)
        self.out = nn.Linear(config.feed_forward, config.width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate, up = self.gate_up(x_BTD).chunk(2, dim=-1)
        return self.out(F.silu(gate) * up)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config: ModelConfig, norm: Normaliser) -> None:
        super().__init__()
        self.attention_norm, self.attention = norm.layer(config.width), Attention(config, norm)
        self.feed_forward_norm, self.feed_forward = norm.layer(config.width), SwiGLU(config)

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), cos, sin)
        return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))


class Transformer(nn.Module):
    """Token ids (B, T) -> logits (B, T, vocabulary).

    The start keeps the residual stream at unit scale (embedding N(0, 1), linear layers N(0, 1/fan-in), what writes
    to the stream divided by √(2·layers)), so that ``none`` starts from as good a network as the others; if it fails,
    the cause is the missing normaliser. The weights are drawn in one order whatever the normaliser: with one seed
    all of them start from the same network.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, vocabulary: int, config: ModelConfig, norm: Normaliser) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, config.width)
        self.blocks = nn.ModuleList(Block(config, norm) for _ in range(config.layers))
        self.norm = norm.layer(config.width)
        self.logits = nn.Linear(config.width, vocabulary, bias=False)
        cos, sin = rotary_tables(config.context, config.width // config.heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

        for name, module in outside_norms(self):
            if isinstance(module, nn.Linear):
                residual = math.sqrt(2 * config.layers) if name.endswith(".out") else 1.0
                nn.init.normal_(module.weight, std=1 / (math.sqrt(module.in_features) * residual))
        nn.init.normal_(self.embedding.weight)
        nn.init.normal_(self.logits.weight, std=0.02)  # near-equal logits: the first loss is ln(vocabulary)

    def forward(self, ids_BT: Tensor) -> Tensor:
        cos, sin = self.cos[: ids_BT.shape[1]], self.sin[: ids_BT.shape[1]]
        x_BTD = self.embedding(ids_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, cos, sin)
        return self.logits(self.norm(x_BTD))
