"""Batches of sentences of similar lengths, as a pure function of step and seed.

Without a pool the sentences are sorted by the target's length, then by the source's length, with ties in random order,
and cut into batches. Each epoch takes the batches in a random order of its own. The sorted lengths are the same in
every epoch, and so is the number of batches; the order of the ties is drawn again for each epoch. With a pool each
epoch takes the sentences in a random order, and sorts them within each run of that number of batches.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rmsnorm_lab.experiments.data.ragged import Ragged
from rmsnorm_lab.experiments.data.subwords import PAD


class Batch(NamedTuple):
    """Ids padded with PAD after each sentence's END: source (B, S), target (B, T)."""

    source: Tensor
    target: Tensor


def padded(sentences: Ragged, chosen: Sequence[int] | NDArray[np.int64]) -> Tensor:
    """The ``chosen`` sentences as one tensor (B, longest), int64."""
    rows = [sentences[index] for index in chosen]
    ids = np.full((len(rows), max(map(len, rows))), PAD, np.int64)
    for row, sentence in zip(ids, rows, strict=True):
        row[: len(sentence)] = sentence
    return torch.from_numpy(ids)


class Batches:
    """The training batches of sentence pairs.

    Arguments:
        size: sentences a batch; or, with ``by_tokens``, tokens of the longer side, padding included.
        pool: see above; not with ``by_tokens``.
    """

    def __init__(self, source: Ragged, target: Ragged, size: int, by_tokens: bool, pool: int | None = None) -> None:
        self.source, self.target = source, target
        self._pooled = None if pool is None else pool * size
        order = np.lexsort((source.lengths, target.lengths))
        longest = np.maximum(source.lengths, target.lengths)[order]
        self._cuts = _cuts(longest, size) if by_tokens else [*range(0, len(order), size), len(order)]
        self._epoch = lru_cache(maxsize=1)(self._draw)  # the order of one epoch is kept

    @property
    def epoch(self) -> int:
        """The number of batches of an epoch, which sees every sentence once."""
        return len(self._cuts) - 1

    def __call__(self, step: int, seed: int) -> Batch:
        """The batch of one step. It depends on nothing but the step and the seed."""
        sentences, batches = self._epoch(step // self.epoch, seed)
        place = batches[step % self.epoch]
        chosen = sentences[self._cuts[place] : self._cuts[place + 1]]
        return Batch(padded(self.source, chosen), padded(self.target, chosen))

    def _draw(self, epoch: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        generator = np.random.Generator(np.random.PCG64([seed, epoch]))
        ties = generator.permutation(len(self.source))
        keys: tuple[NDArray[np.int64], ...] = (ties, self.source.lengths, self.target.lengths)
        if self._pooled is not None:
            keys = (*keys, ties // self._pooled)
        return np.lexsort(keys), generator.permutation(self.epoch)


def _cuts(longest: NDArray[np.int64], tokens: int) -> list[int]:
    """Where each batch begins, and the end. A batch takes sentences while rows × longest row is at most ``tokens``."""
    cuts, width = [0], 0
    for index, length in enumerate(longest.tolist()):
        width = max(width, length)
        if index > cuts[-1] and (index + 1 - cuts[-1]) * width > tokens:
            cuts.append(index)
            width = length
    return [*cuts, len(longest)]
