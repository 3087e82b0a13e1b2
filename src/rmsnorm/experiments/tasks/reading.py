"""Cloze questions on a text: which of its entities stands where the question has @placeholder."""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmsnorm.experiments import tasks
from rmsnorm.experiments.data import cloze, function_questions, standard_library
from rmsnorm.experiments.data.cloze import ENTITY, Question, Questions
from rmsnorm.experiments.data.epochs import check_enough, chosen, generator
from rmsnorm.experiments.models.attentive_reader import AttentiveReader
from rmsnorm.experiments.processes import shared
from rmsnorm.experiments.recipes.common import Recipe
from rmsnorm.experiments.task import Metric, Source

PADDING, UNKNOWN, FIRST_WORD = 0, 1, 2
_EVALUATION_BATCH = 128


class Batch(NamedTuple):
    context: Tensor
    """(B, T) ids, padded"""
    context_lengths: Tensor
    question: Tensor
    """(B, Q)"""
    question_lengths: Tensor
    answer: Tensor
    """(B), the id of an entity marker"""


class Encoded(NamedTuple):
    """A question in ids; its k-th entity, whatever marker it had, is −1 − k."""

    context: np.ndarray[Any, Any]
    question: np.ndarray[Any, Any]
    answer: int
    entities: int


class Reading:
    """See :class:`rmsnorm.experiments.task.Task`. Entities are given markers at random, anew each time a question is
    trained on, so that nothing can be learnt of a marker; in evaluation each question has markers of its own."""

    name = "reading"
    norms, default_norms = tasks.NORMS[name], tasks.DEFAULT_NORMS[name]
    metrics = (Metric("accuracy", "accuracy, %", higher_is_better=True, form=".1f"),)

    def __init__(self, recipe: Recipe, source: Source, found: Questions) -> None:
        self.recipe, self.source = recipe, source
        check_enough(len(found.splits["train"]), recipe.train.batch, source.name, "questions")
        data = recipe.data
        splits = {
            split: [_shortened(q, data.sentences, data.longest) for q in part] for split, part in found.splits.items()
        }
        counts = Counter(
            word for q in splits["train"] for word in (*q.context, *q.question) if not ENTITY.fullmatch(word)
        )
        words = sorted(counts, key=lambda word: (-counts[word], word))[: data.vocabulary]
        self.ids = {word: i for i, word in enumerate(words, FIRST_WORD)}
        self.splits = {split: [self._encoded(question) for question in part] for split, part in splits.items()}
        self.first_marker = FIRST_WORD + len(self.ids)
        self.markers = max(each.entities for part in self.splits.values() for each in part)
        self.references = {"the context's most frequent entity": 100 * _majority(found.splits["test"])}

    def _encoded(self, question: Question) -> Encoded:
        entities: dict[str, int] = {}

        def ids(words: list[str]) -> np.ndarray[Any, Any]:
            found = [
                -1 - entities.setdefault(word, len(entities)) if ENTITY.fullmatch(word) else self.ids.get(word, UNKNOWN)
                for word in words
            ]
            return np.array(found, dtype=np.int32)

        context, asked = ids(question.context), ids(question.question)
        answer = entities.setdefault(question.answer, len(entities))  # may have been cut off with its sentence
        return Encoded(context, asked, answer, len(entities))

    def model(self, norm: str, kernels: str) -> nn.Module:
        return AttentiveReader(self.first_marker + self.markers, self.recipe.model, norm, kernels, self.recipe.p)

    def batch(self, step: int, seed: int) -> Batch:
        indices, _ = chosen(step, seed, len(self.splits["train"]), self.recipe.train.batch)
        return self._batch([self.splits["train"][i] for i in indices], generator(seed, step, 2))

    def _batch(self, questions: list[Encoded], lots: np.random.Generator) -> Batch:
        contexts, asked, answers = [], [], []
        for each in questions:
            markers = self.first_marker + lots.permutation(self.markers)
            contexts.append(np.where(each.context < 0, markers[-1 - each.context.clip(max=-1)], each.context))
            asked.append(np.where(each.question < 0, markers[-1 - each.question.clip(max=-1)], each.question))
            answers.append(int(markers[each.answer]))
        return Batch(*_padded(contexts), *_padded(asked), torch.tensor(answers))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Summed cross-entropy over the whole vocabulary in nats."""
        *inputs, answers = batch
        return F.cross_entropy(model(*inputs).float(), answers, reduction="sum")

    def weight(self, batch: Batch) -> float:
        """Questions."""
        return len(batch.answer)

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        device = next(model.parameters()).device
        part, lots = self.splits[split], generator(0)
        order = sorted(range(len(part)), key=lambda i: len(part[i].context))  # like lengths together: less padding
        chunks = [order[start : start + _EVALUATION_BATCH] for start in range(0, len(part), _EVALUATION_BATCH)]

        def judged(batch: Batch) -> tuple[int, float]:
            *inputs, answers = (tensor.to(device) for tensor in batch)
            logits = model(*inputs).float()
            nats = F.cross_entropy(logits, answers, reduction="sum").item()
            return int((logits.argmax(1) == answers).sum()), nats

        found = shared(judged, [self._batch([part[i] for i in chunk], lots) for chunk in chunks])
        right, nats = (sum(column) for column in zip(*found, strict=True))
        return {"accuracy": 100 * right / len(part), "loss": nats / len(part)}

    def initialise(self, model: nn.Module, batch: Batch) -> None:
        pass

    def files(self) -> dict[str, bytes]:
        return {}


def _shortened(question: Question, sentences: int | None, longest: int) -> Question:
    context = question.context
    if sentences is not None:
        context = cloze.most_relevant(context, question.question, sentences)
    return Question(context[:longest], question.question, question.answer)


def _majority(questions: list[Question]) -> float:
    """The share answered by the entity that the whole context names most often, the first of equals."""
    right = 0
    for question in questions:
        counts = Counter(word for word in question.context if ENTITY.fullmatch(word))
        right += max(counts, key=counts.__getitem__) == question.answer
    return right / len(questions)


def _padded(rows: list[np.ndarray[Any, Any]]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.full((len(rows), int(lengths.max())), PADDING)
    for padded, row in zip(ids, rows, strict=True):
        padded[: len(row)] = torch.from_numpy(row.astype(np.int64))
    return ids, lengths


def load(data: Path | None, recipe: Recipe) -> Reading:
    """DeepMind's or Danqi's files, or questions on the standard library's functions."""
    if data is None:
        with tempfile.TemporaryDirectory() as folder:
            function_questions.write(Path(folder), standard_library.sources())
            found = cloze.load(Path(folder))
    else:
        found = cloze.load(data)
    name = f"functions of {standard_library.NAME}" if data is None else data.resolve().name
    details: dict[str, Any] = {f"{split} questions": len(part) for split, part in found.splits.items()}
    details["layout"] = found.layout
    return Reading(recipe, Source(name, data is None, found.sha256, details), found)
