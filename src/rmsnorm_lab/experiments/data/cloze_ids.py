"""Cloze questions as ids: the vocabulary, the choice of sentences, and the entities.

The k-th entity of a question, from 0 on, has the id −1 − k. Its marker in the file does not matter.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsnorm_lab.experiments.data import cloze
from rmsnorm_lab.experiments.data.cloze import ENTITY, FOLDERS, Question
from rmsnorm_lab.experiments.data.loading import Loading
from rmsnorm_lab.experiments.data.prepared import Writer
from rmsnorm_lab.experiments.recipes.reading import DataConfig

PADDING, UNKNOWN, FIRST_WORD = 0, 1, 2
_PIECE = 1 << 22
"""Words that are converted at a time."""


def build(
    config: DataConfig, questions: Callable[[str], Iterable[Question]], writer: Writer, loading: Loading
) -> dict[str, Any]:
    """Write each split's questions as ids. The most frequent words of the training split get ids from FIRST_WORD on."""
    numbers: dict[str, int] = {}  # of words, in the order of their first occurrence
    right = asked = 0
    ids: NDArray[np.int32] | None = None
    words: list[str] = []
    for split in FOLDERS:
        rows = _Rows(numbers, learn=split == "train")
        for question in loading.over(f"{split} questions", questions(split)):
            rows.add(_shortened(question, config.sentences, config.longest))
            if split == "test":
                asked += 1
                right += _most_frequent(question) == question.answer
        if ids is None:
            words, ids = _vocabulary(numbers, rows, config.vocabulary)
        rows.write(split, ids, writer)
    return {"words": words, "majority": 100 * right / asked}


class _Rows:
    """Questions with words as numbers. Words that are not in the training split have the number after the last one."""

    def __init__(self, numbers: dict[str, int], learn: bool) -> None:
        self.numbers, self.learn = numbers, learn
        self.contexts, self.questions = array("i"), array("i")
        self.context_lengths, self.question_lengths = array("i"), array("i")
        self.answers, self.entities = array("i"), array("i")

    def add(self, question: Question) -> None:
        entities: dict[str, int] = {}
        for words, numbers, lengths in (
            (question.context, self.contexts, self.context_lengths),
            (question.question, self.questions, self.question_lengths),
        ):
            numbers.extend(self._number(word, entities) for word in words)
            lengths.append(len(words))
        # The answer's sentence may have been left out.
        self.answers.append(entities.setdefault(question.answer, len(entities)))
        self.entities.append(len(entities))

    def _number(self, word: str, entities: dict[str, int]) -> int:
        if ENTITY.fullmatch(word):
            return -1 - entities.setdefault(word, len(entities))
        if self.learn:
            return self.numbers.setdefault(word, len(self.numbers))
        return self.numbers.get(word, len(self.numbers))

    def write(self, split: str, ids: NDArray[np.int32], writer: Writer) -> None:
        for name, numbers, lengths in (
            ("contexts", self.contexts, self.context_lengths),
            ("questions", self.questions, self.question_lengths),
        ):
            for start in range(0, len(numbers), _PIECE):
                piece = np.array(numbers[start : start + _PIECE], np.int32)
                writer.append(f"{split}.{name}", np.where(piece < 0, piece, ids[piece]))
            writer.append(f"{split}.{name}.lengths", np.array(lengths, np.int32))
        writer.append(f"{split}.answers", np.array(self.answers, np.int32))
        writer.append(f"{split}.entities", np.array(self.entities, np.int32))


def _vocabulary(numbers: dict[str, int], train: _Rows, size: int) -> tuple[list[str], NDArray[np.int32]]:
    """The most frequent words, and a table from numbers to ids."""
    counts = np.zeros(len(numbers), np.int64)
    for part in (train.contexts, train.questions):
        found = np.frombuffer(part, np.intc)
        for start in range(0, len(found), _PIECE):
            piece = found[start : start + _PIECE]
            counts += np.bincount(piece[piece >= 0], minlength=len(numbers))
    words = sorted(numbers, key=lambda word: (-counts[numbers[word]], word))[:size]
    ids = np.full(len(numbers) + 1, UNKNOWN, np.int32)
    for place, word in enumerate(words, FIRST_WORD):
        ids[numbers[word]] = place
    return words, ids


def _shortened(question: Question, sentences: int | None, longest: int | None) -> Question:
    context = question.context
    if sentences is not None:
        context = cloze.most_relevant(context, question.question, sentences)
    return Question(context[:longest], question.question, question.answer)


def _most_frequent(question: Question) -> str:
    """The most frequent entity of the whole context, the first one of equals."""
    counts = Counter(word for word in question.context if ENTITY.fullmatch(word))
    return max(counts, key=counts.__getitem__)
