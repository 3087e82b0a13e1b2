"""Translation by search: beam search over any model that reads a sentence once and then answers word by word.

Legend of the shape suffixes: B sentences, K hypotheses of each (the beam), V vocabulary, S source positions.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

from rmsnorm_lab.experiments.data.subwords import BEGIN, END, PAD

Tensors = tuple[Tensor, ...]
"""Each with the hypothesis as its first dimension."""


class Translator(Protocol):
    """What the search needs of a model."""

    def encode(self, source_BS: Tensor) -> Tensors:
        """What is read of the source, once: the memory."""

    def start(self, memory: Tensors) -> Tensors:
        """The state before the first word."""

    def step(self, memory: Tensors, state: Tensors, words_B: Tensor) -> tuple[Tensor, Tensors]:
        """After ``words_B``: logits of the next word (B, V), and the new state."""


def search(
    model: Translator,
    source_BS: Tensor,
    limits_B: Tensor,
    beam: int = 1,
    length_penalty: float = 1.0,
    length_offset: int = 0,
) -> tuple[Tensor, Tensor]:
    """The best translation of each sentence: greedy with ``beam=1``.

    A hypothesis that has ended keeps its place in the beam, with the log-probability it has; the search is over when
    all have. Of these the best by log-probability / ((o + length) / (o + 1))^``length_penalty`` is taken, o being
    ``length_offset``. With a beam as wide as there
    are sentences, nothing is lost and the result is the true maximum.

    Args:
        model: in evaluation mode; called without gradients by the caller.
        source_BS: ids, padded.
        limits_B: each sentence's greatest length, END included; there, only END may follow.
        beam: K, the hypotheses that are kept.
        length_penalty: 0 takes the likeliest, 1 (without an offset) the likeliest by the word.
        length_offset: 0; 5 for the penalty of Wu et al. 2016.

    Returns:
        (ids (B, longest), END and then PAD after each; their log-probabilities divided as said (B)).
    """
    B, K = len(source_BS), beam
    memory = tuple(part.repeat_interleave(K, dim=0) for part in model.encode(source_BS))
    state = model.start(memory)
    device = source_BS.device
    first_of_each = torch.arange(B, device=device)[:, None] * K
    limits_B1 = limits_B.to(device)[:, None]

    log_p_BK = torch.full((B, K), -math.inf, device=device)
    log_p_BK[:, 0] = 0.0  # all K begin alike: one is enough
    ended_BK = torch.zeros(B, K, dtype=torch.bool, device=device)
    lengths_BK = torch.zeros(B, K, dtype=torch.int64, device=device)
    words_BKT = torch.full((B, K, 1), BEGIN, device=device)
    for done in range(int(limits_B.max())):
        logits, state = model.step(memory, state, words_BKT[:, :, -1].flatten())
        step_BKV = torch.log_softmax(logits.float(), dim=-1).view(B, K, -1)
        step_BKV[:, :, [PAD, BEGIN]] = -math.inf
        forced_BK = (limits_B1 <= done + 1).expand(B, K)
        step_BKV = _only(step_BKV, forced_BK, END)
        step_BKV = _only(step_BKV, ended_BK, PAD)
        step_BKV[..., PAD].masked_fill_(ended_BK, 0.0)

        V = step_BKV.shape[-1]
        log_p_BK, chosen_BK = (log_p_BK[..., None] + step_BKV).flatten(1).topk(K, dim=-1)
        parent_BK, word_BK = chosen_BK // V, chosen_BK % V
        state = tuple(part.index_select(0, (first_of_each + parent_BK).flatten()) for part in state)
        words_BKT = words_BKT.gather(1, parent_BK[..., None].expand(-1, -1, done + 1))
        words_BKT = torch.cat((words_BKT, word_BK[..., None]), dim=-1)
        ended_before_BK = ended_BK.gather(1, parent_BK)
        lengths_BK = lengths_BK.gather(1, parent_BK) + ~ended_before_BK
        ended_BK = ended_before_BK | (word_BK == END)
        if ended_BK.all():
            break

    scores_BK = log_p_BK / ((length_offset + lengths_BK) / (length_offset + 1)) ** length_penalty
    best_B = scores_BK.argmax(dim=-1)
    rows = torch.arange(B, device=device)
    return words_BKT[rows, best_B, 1:], scores_BK[rows, best_B]


def _only(step_BKV: Tensor, where_BK: Tensor, word: int) -> Tensor:
    """Nothing but ``word`` may follow there."""
    others = torch.arange(step_BKV.shape[-1], device=step_BKV.device) != word
    return step_BKV.masked_fill(where_BK[..., None] & others, -math.inf)
