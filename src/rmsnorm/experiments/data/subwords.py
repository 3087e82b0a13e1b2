"""Subwords: byte-pair encoding over bytes, learnt from the training side of a corpus alone, both languages jointly.

Over bytes no character is unknown, and what is encoded is decoded to itself. The library's ids are shifted by three:
0 pads, 1 begins and 2 ends a sentence, and no text, whatever it holds, can be encoded to one of these.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from rmsnorm.errors import UserError

PAD, BEGIN, END = 0, 1, 2
_SHIFT = 3
SMALLEST = 256 + _SHIFT
"""The vocabulary of the bytes alone."""
_CHUNK = 100_000
"""Sentences encoded at a time: the library keeps far more of each than its ids."""


@dataclass(frozen=True)
class Sentences:
    """Encoded sentences one behind the other: ``ids[starts[i]:starts[i + 1]]`` is sentence i, its END included."""

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        return self.ids[self.starts[index] : self.starts[index + 1]]

    def only(self, chosen: NDArray[np.int64]) -> "Sentences":
        """The sentences of these numbers, in this order."""
        lengths = self.lengths[chosen]
        starts = np.concatenate(([0], np.cumsum(lengths)))
        places = np.arange(starts[-1]) + np.repeat(self.starts[chosen] - starts[:-1], lengths)
        return Sentences(self.ids[places], starts)

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.starts)


class Subwords:
    """A trained encoding."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.size = tokenizer.get_vocab_size() + _SHIFT

    @classmethod
    def learn(cls, texts: Iterable[str], vocabulary: int) -> "Subwords":
        """Merge the most frequent pairs until there are ``vocabulary`` subwords, or nothing is left to merge."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary - _SHIFT,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def read(cls, path: Path) -> "Subwords":
        """What ``dumps`` wrote.

        Raises:
            UserError: it cannot be read.
        """
        try:
            return cls(Tokenizer.from_str(path.read_text("utf-8")))
        except OSError as error:
            raise UserError(f"{path} must be readable; it is not: {error.strerror}.") from None
        except Exception as error:  # the library raises nothing narrower
            raise UserError(
                f"{path} must hold the subwords as this program saved them; it cannot be read: {error}. "
                "Take it out, and they are learnt anew."
            ) from None

    def dumps(self) -> bytes:
        """The file to be saved beside a run."""
        return self._tokenizer.to_str(pretty=True).encode()

    def encode(self, texts: Sequence[str]) -> Sentences:
        """Each sentence's ids with END behind them."""
        parts: list[NDArray[np.int32]] = []
        lengths = np.zeros(len(texts) + 1, np.int64)
        for start in range(0, len(texts), _CHUNK):
            for place, encoding in enumerate(self._tokenizer.encode_batch_fast(list(texts[start : start + _CHUNK]))):
                ids = np.array([*encoding.ids, END - _SHIFT], np.int32) + _SHIFT
                parts.append(ids)
                lengths[start + place + 1] = len(ids)
        return Sentences(np.concatenate(parts) if parts else np.zeros(0, np.int32), np.cumsum(lengths))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids up to END; bytes that are no UTF-8 become U+FFFD."""
        kept = []
        for number in ids:
            if number == END:
                break
            if number >= _SHIFT:
                kept.append(number - _SHIFT)
        return str(self._tokenizer.decode(kept))
