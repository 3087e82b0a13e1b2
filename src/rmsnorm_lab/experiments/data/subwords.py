"""Subwords: byte-pair encoding over bytes, learnt from the training set only, for both languages together.

With bytes no character is unknown, and decoding gives back the encoded text. The ids of the library are shifted by
three: 0 is padding, 1 begins and 2 ends a sentence. No text can be encoded to one of these three.
"""

import json
import re
from array import array
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.data.ragged import Ragged

PAD, BEGIN, END = 0, 1, 2
_SHIFT = 3
LONGEST = 1024
"""Subwords of a sentence to translate, several times the longest training sentence of any recipe. A longer sentence
comes from a text that lost its line ends, and would take many times the memory of training."""
_BEFORE_WORD = re.compile(r"(?= \S)")
"""The pre-tokeniser always splits before a space that text follows, so words can be encoded one by one."""


class Subwords:
    """A trained encoding."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.size = tokenizer.get_vocab_size() + _SHIFT

    @classmethod
    def learn(cls, texts: Iterable[str], vocabulary: int) -> "Subwords":
        """Merge the most frequent pair until there are ``vocabulary`` subwords, or nothing is left to merge."""
        tokenizer = _over_bytes(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary - _SHIFT,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def unlearnt(cls, size: int) -> "Subwords":
        """``size`` subwords that no text has decided: the bytes, then their pairs, then pairs with one byte more."""
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        words, merges = list(alphabet), list[tuple[str, str]]()
        for left in words:  # it grows
            added = alphabet[: size - _SHIFT - len(words)]
            words += [left + right for right in added]
            merges += [(left, right) for right in added]
            if len(words) == size - _SHIFT:
                break
        return cls(_over_bytes(models.BPE(vocab={word: place for place, word in enumerate(words)}, merges=merges)))

    @classmethod
    def loads(cls, text: str, path: Path) -> "Subwords":
        """Read what ``dumps`` wrote. The library's files can hold other kinds of encodings, which are refused.

        Raises:
            UserError: ``text`` is not such a file; names ``path``.
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
        """The content of the file that is saved beside a run."""
        return self._tokenizer.to_str(pretty=True).encode()

    def encode(self, texts: Sequence[str]) -> Ragged:
        """The ids of each sentence, with END at its end. The library keeps much more than ids: pass thousands.

        Each different word is encoded once: words repeat, and the library takes about 4 µs for a word.
        """
        numbers: dict[str, int] = {}  # of words, from 1 on: row 0 is END
        rows, counts = array("q"), array("q")
        for text in texts:
            words = _BEFORE_WORD.split(text)
            rows.extend(numbers.setdefault(word, len(numbers) + 1) for word in words)
            rows.append(0)
            counts.append(len(words) + 1)
        encoded = [[END - _SHIFT], *(encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(numbers)))]
        values = np.fromiter(chain.from_iterable(encoded), np.int32) + np.int32(_SHIFT)
        found = Ragged.of(values, np.fromiter(map(len, encoded), np.int64, len(encoded))).take(np.array(rows))
        return Ragged(found.values, found.starts[np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids up to END. Bytes that are not UTF-8 become U+FFFD."""
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
