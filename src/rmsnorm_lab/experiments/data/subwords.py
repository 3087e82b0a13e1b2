"""Subwords: byte-pair encoding over bytes, learnt from the training side of a corpus alone, both languages jointly.

Over bytes no character is unknown, and what is encoded is decoded to itself. The library's ids are shifted by three:
0 pads, 1 begins and 2 ends a sentence, and no text, whatever it holds, can be encoded to one of these.
"""

import json
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.data.ragged import Ragged

PAD, BEGIN, END = 0, 1, 2
_SHIFT = 3
SMALLEST = 256 + _SHIFT
"""The vocabulary of the bytes alone."""


LONGEST = 1024
"""Subwords of a sentence that is translated, several times what any recipe trains on. A longer one is a text whose line
ends were lost, and would take many times the memory of training."""


class Subwords:
    """A trained encoding."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.size = tokenizer.get_vocab_size() + _SHIFT

    @classmethod
    def learn(cls, texts: Iterable[str], vocabulary: int) -> "Subwords":
        """Merge the most frequent pairs until there are ``vocabulary`` subwords, or nothing is left to merge."""
        tokenizer = _over_bytes(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary - _SHIFT,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def loads(cls, text: str, path: Path) -> "Subwords":
        """What ``dumps`` wrote, and nothing else: the library's files can hold encodings of quite other kinds.

        Raises:
            UserError: it is something else; names ``path``.
        """
        try:
            found, model = Tokenizer.from_str(text), json.loads(text)["model"]
            merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in model["merges"]]
            expected = _over_bytes(models.BPE(vocab=model["vocab"], merges=merges))
            same = found.to_str() == expected.to_str() and sorted(model["vocab"].values()) == [
                *range(len(model["vocab"]))
            ]
            if not same or not set(pre_tokenizers.ByteLevel.alphabet()) <= model["vocab"].keys():
                raise ValueError("it is another encoding than byte-pair encoding over all bytes")
        except Exception as error:  # the library raises nothing narrower
            raise UserError(
                f"{path} must hold the subwords as this program saved them; it cannot be used: {error}. "
                "Take it out, and they are learnt from the text."
            ) from None
        return cls(found)

    def dumps(self) -> bytes:
        """The file to be saved beside a run."""
        return self._tokenizer.to_str(pretty=True).encode()

    def encode(self, texts: Sequence[str]) -> Ragged:
        """Each sentence's ids with END at its end. The library keeps far more of each than its ids: pass thousands."""
        ends = [END - _SHIFT]
        rows = [encoding.ids + ends for encoding in self._tokenizer.encode_batch_fast(list(texts))]
        values = np.fromiter(chain.from_iterable(rows), np.int32) + np.int32(_SHIFT)
        return Ragged.of(values, np.fromiter(map(len, rows), np.int64, len(rows)))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids up to END; bytes that are no UTF-8 become U+FFFD."""
        kept = []
        for number in ids:
            if number == END:
                break
            if number >= _SHIFT:
                kept.append(number - _SHIFT)
        return str(self._tokenizer.decode(kept))


def _over_bytes(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
