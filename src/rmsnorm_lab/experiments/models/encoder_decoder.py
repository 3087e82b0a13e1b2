"""The encoder-decoder Transformer of Vaswani et al. 2017, post-norm as they and the paper have it, or pre-norm.

Legend of the shape suffixes: B sentences, S source and T target positions, D model width, H heads, K = D / H,
V vocabulary.

    post-norm   x ← N(x + f(x))
    pre-norm    x ← x + f(N(x)), and N after the last layer of each stack
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmsnorm_lab.experiments.data.subwords import BEGIN, PAD
from rmsnorm_lab.experiments.models.search import Tensors
from rmsnorm_lab.experiments.norms.base import Normaliser, outside_norms
from rmsnorm_lab.experiments.recipes.transformer import ModelConfig


def positions(start: int, stop: int, width: int, device: torch.device) -> Tensor:
    """sin(t / 10000^{2i/D}) in the first half of the width, cos in the second; (stop − start, D)."""
    frequencies = 10_000.0 ** (-torch.arange(0, width, 2, device=device) / width)
    angles = torch.outer(torch.arange(start, stop, device=device).float(), frequencies)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.attention_dropout
        self.q, self.k, self.v, self.out = (nn.Linear(config.width, config.width) for _ in range(4))

    def keys_values(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        return self.k(x_BSD), self.v(x_BSD)

    def forward(self, x_BTD: Tensor, k_BSD: Tensor, v_BSD: Tensor, seen: Tensor | None, causal: bool) -> Tensor:
        """``seen`` (B, 1, 1, S): the positions that are words; ``causal``: none but those up to one's own."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q(x_BTD), k_BSD, v_BSD))
        dropout = self.dropout if self.training else 0.0
        y_BHTK = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout, is_causal=causal)
        return self.out(y_BHTK.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up, self.out = nn.Linear(config.width, config.feed_forward), nn.Linear(config.feed_forward, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.dropout(F.relu(self.up(x))))


class Residual(nn.Module):
    """A sublayer with its norm, before the sublayer or after the sum."""

    def __init__(self, config: ModelConfig, norm: Normaliser) -> None:
        super().__init__()
        self.norm, self.dropout, self.pre_norm = norm.layer(config.width), nn.Dropout(config.dropout), config.pre_norm

    def before(self, x: Tensor) -> Tensor:
        return self.norm(x) if self.pre_norm else x

    def after(self, x: Tensor, change: Tensor) -> Tensor:
        x = x + self.dropout(change)
        return x if self.pre_norm else self.norm(x)


class EncoderLayer(nn.Module):
    def __init__(self, config: ModelConfig, norm: Normaliser) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(config), FeedForward(config)
        self.attend, self.feed = Residual(config, norm), Residual(config, norm)

    def forward(self, x_BSD: Tensor, seen: Tensor) -> Tensor:
        y = self.attend.before(x_BSD)
        x_BSD = self.attend.after(x_BSD, self.attention(y, *self.attention.keys_values(y), seen, causal=False))
        return self.feed.after(x_BSD, self.feed_forward(self.feed.before(x_BSD)))


class DecoderLayer(nn.Module):
    def __init__(self, config: ModelConfig, norm: Normaliser) -> None:
        super().__init__()
        self.attention, self.cross, self.feed_forward = Attention(config), Attention(config), FeedForward(config)
        self.attend, self.attend_source, self.feed = (Residual(config, norm) for _ in range(3))

    def forward(
        self, x_BTD: Tensor, seen: Tensor, k_BSD: Tensor, v_BSD: Tensor, cache: Tensors
    ) -> tuple[Tensor, Tensors]:
        """``cache``: keys and values of the words before these (B, ≥ 0, D); the new ones come back."""
        y = self.attend.before(x_BTD)
        own = tuple(torch.cat(pair, dim=1) for pair in zip(cache, self.attention.keys_values(y), strict=True))
        # Several words at a time only without words before them: then "up to one's own" is the square's lower half.
        x_BTD = self.attend.after(x_BTD, self.attention(y, own[0], own[1], None, causal=x_BTD.shape[1] > 1))
        y = self.attend_source.before(x_BTD)
        x_BTD = self.attend_source.after(x_BTD, self.cross(y, k_BSD, v_BSD, seen, causal=False))
        return self.feed.after(x_BTD, self.feed_forward(self.feed.before(x_BTD))), own


class EncoderDecoder(nn.Module):
    """(source ids (B, S), target ids (B, T)) -> logits (B, T, V) of each target id after those before it.

    One embedding serves source, target and logits, unless ``config`` gives the source its own. Matrices are Xavier's,
    embeddings N(0, 1/D), drawn in one order whatever the normaliser.
    """

    def __init__(self, vocabulary: int, config: ModelConfig, norm: Normaliser) -> None:
        super().__init__()
        self.width = config.width
        self.embedding, self.dropout = nn.Embedding(vocabulary, config.width), nn.Dropout(config.dropout)
        self.encoder = nn.ModuleList(EncoderLayer(config, norm) for _ in range(config.layers))
        self.decoder = nn.ModuleList(DecoderLayer(config, norm) for _ in range(config.layers))
        width, last = config.width, config.pre_norm
        self.encoder_norm = norm.layer(width) if last else nn.Identity()
        self.decoder_norm = norm.layer(width) if last else nn.Identity()
        for _, module in outside_norms(self):
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.embedding.weight, std=config.width**-0.5)
        self.source_embedding = nn.Embedding(vocabulary, config.width) if config.source_embedding else None
        if self.source_embedding is not None:
            nn.init.normal_(self.source_embedding.weight, std=config.width**-0.5)
        self.embedding_bias = nn.Parameter(torch.zeros(config.width)) if config.embedding_bias else None

    def forward(self, source_BS: Tensor, target_BT: Tensor) -> Tensor:
        before_BT = torch.cat((torch.full_like(target_BT[:, :1], BEGIN), target_BT[:, :-1]), dim=1)
        memory = self.encode(source_BS)
        return self._decode(memory, self.start(memory), before_BT)[0]

    def encode(self, source_BS: Tensor) -> Tensors:
        """(which positions are words (B, S), then for each decoder layer the source's keys and values (B, S, D))."""
        words_BS = source_BS != PAD
        x_BSD, seen = self._embed(self.source_embedding or self.embedding, source_BS, 0), words_BS[:, None, None, :]
        for layer in self.encoder:
            x_BSD = layer(x_BSD, seen)
        x_BSD = self.encoder_norm(x_BSD)
        keys_values: Tensors = ()
        for layer in self.decoder:
            assert isinstance(layer, DecoderLayer)
            keys_values += layer.cross.keys_values(x_BSD)
        return (words_BS, *keys_values)

    def start(self, memory: Tensors) -> Tensors:
        """Of each decoder layer, the keys and values of no words."""
        return tuple(part[:, :0] for part in memory[1:])

    def step(self, memory: Tensors, state: Tensors, words_B: Tensor) -> tuple[Tensor, Tensors]:
        logits_B1V, state = self._decode(memory, state, words_B[:, None])
        return logits_B1V[:, 0], state

    def _decode(self, memory: Tensors, state: Tensors, before_BT: Tensor) -> tuple[Tensor, Tensors]:
        x_BTD, seen = self._embed(self.embedding, before_BT, state[0].shape[1]), memory[0][:, None, None, :]
        caches: Tensors = ()
        for index, layer in enumerate(self.decoder):
            of_layer = slice(2 * index, 2 * index + 2)
            x_BTD, cache = layer(x_BTD, seen, *memory[1:][of_layer], state[of_layer])
            caches += cache
        return F.linear(self.decoder_norm(x_BTD), self.embedding.weight), caches

    def _embed(self, embedding: nn.Module, ids_BT: Tensor, start: int) -> Tensor:
        x_BTD = embedding(ids_BT) * math.sqrt(self.width)
        x_BTD = x_BTD if self.embedding_bias is None else x_BTD + self.embedding_bias
        return self.dropout(x_BTD + positions(start, start + ids_BT.shape[1], self.width, x_BTD.device))
