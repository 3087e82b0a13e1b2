"""Cloze questions on a text: which of its entities belongs in the question's @placeholder."""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmsnorm_lab.experiments import norms
from rmsnorm_lab.experiments.data import cloze, function_questions, standard_library
from rmsnorm_lab.experiments.data import drawn as random_inputs
from rmsnorm_lab.experiments.data.cloze import FOLDERS
from rmsnorm_lab.experiments.data.cloze_ids import FIRST_WORD, PADDING, build
from rmsnorm_lab.experiments.data.epochs import check_enough, chosen, numpy_generator
from rmsnorm_lab.experiments.data.loading import Loading
from rmsnorm_lab.experiments.data.prepared import Prepared, Writer, prepare, temporary
from rmsnorm_lab.experiments.models.attentive_reader import AttentiveReader
from rmsnorm_lab.experiments.processes import shared
from rmsnorm_lab.experiments.recipes.common import Recipe
from rmsnorm_lab.experiments.recipes.reading import DataConfig
from rmsnorm_lab.experiments.task import Metric, Source

WORDS = "words.json"
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


class Split:
    """The encoded questions of a split."""

    def __init__(self, found: Prepared, split: str) -> None:
        self.contexts, self.questions = found.ragged(f"{split}.contexts"), found.ragged(f"{split}.questions")
        self.answers, self.entities = found.arrays[f"{split}.answers"], found.arrays[f"{split}.entities"]

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, index: int) -> Encoded:
        return Encoded(self.contexts[index], self.questions[index], int(self.answers[index]))


class Reading:
    """See :class:`rmsnorm_lab.experiments.task.Task`. Entities get random markers each time a question is used in
    training, so that nothing can be learnt about a marker; in evaluation each question has its own markers."""

    name = "reading"
    metrics = (Metric("accuracy", "accuracy, %", higher_is_better=True, form=".1f"),)

    def __init__(self, recipe: Recipe, source: Source, found: Prepared) -> None:
        self.recipe, self.source = recipe, source
        self.splits = {split: Split(found, split) for split in FOLDERS}
        check_enough(len(self.splits["train"]), recipe.train.batch, source.name, "questions")
        self.ids = {word: i for i, word in enumerate(found.info["words"], FIRST_WORD)}
        self.first_marker = FIRST_WORD + len(self.ids)
        self.markers = max(int(part.entities.max()) for part in self.splits.values())
        self.sizes = {"vocabulary": self.first_marker + self.markers}
        self.references = {"the context's most frequent entity": found.info["majority"]}

    def model(self, norm: str, kernels: str) -> nn.Module:
        return network(self.recipe, self.sizes, norm, kernels)

    def batch(self, step: int, seed: int) -> Batch:
        indices, _ = chosen(step, seed, len(self.splits["train"]), self.recipe.train.batch)
        return self._batch([self.splits["train"][i] for i in indices], numpy_generator(seed, step, 2))

    def _batch(self, questions: list[Encoded], draws: np.random.Generator) -> Batch:
        contexts, asked, answers = [], [], []
        for each in questions:
            markers = self.first_marker + draws.permutation(self.markers)
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
        part, draws = self.splits[split], numpy_generator(0)
        order = np.argsort(part.contexts.lengths, kind="stable")  # like lengths together: less padding
        chunks = [order[start : start + _EVALUATION_BATCH] for start in range(0, len(part), _EVALUATION_BATCH)]

        def judged(batch: Batch) -> tuple[int, float]:
            *inputs, answers = (tensor.to(device) for tensor in batch)
            logits = model(*inputs).float()
            nats = F.cross_entropy(logits, answers, reduction="sum").item()
            return int((logits.argmax(1) == answers).sum()), nats

        found = shared(judged, [self._batch([part[i] for i in chunk], draws) for chunk in chunks])
        right, nats = (sum(column) for column in zip(*found, strict=True))
        return {"accuracy": 100 * right / len(part), "loss": nats / len(part)}

    def initialise(self, model: nn.Module, seed: int) -> None:
        pass

    def files(self) -> dict[str, bytes]:
        return {WORDS: json.dumps(list(self.ids)).encode()}


def preprocessor(files: Mapping[str, bytes]) -> list[str]:
    """The words in the order of their ids, from FIRST_WORD on."""
    return list(json.loads(files[WORDS]))


def network(recipe: Recipe, sizes: dict[str, int], norm: str, kernels: str) -> nn.Module:
    """The untrained network."""
    return AttentiveReader(sizes["vocabulary"], recipe.model, norms.made(norm, kernels, recipe.p))


def _padded(rows: list[np.ndarray[Any, Any]]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.full((len(rows), int(lengths.max())), PADDING)
    for padded, row in zip(ids, rows, strict=True):
        padded[: len(row)] = torch.from_numpy(row.astype(np.int64))
    return ids, lengths


def load(data: Path | None, recipe: Recipe) -> Reading:
    """DeepMind's or Danqi's files, or questions on the standard library's functions."""
    if data is None:
        name = f"functions of {standard_library.NAME}"
        with tempfile.TemporaryDirectory() as folder:
            function_questions.write(Path(folder), standard_library.sources())
            files = cloze.find(Path(folder))
            found = temporary(partial(_encode, files, recipe.data))
    else:
        name, files = data.resolve().name, cloze.find(data)
        settings = {"layout": files.layout, **asdict(recipe.data)}
        found = prepare("reading", data, files.all, settings, partial(_encode, files, recipe.data))
    details: dict[str, Any] = {f"{split} questions": len(found.arrays[f"{split}.answers"]) for split in FOLDERS}
    details["layout"] = files.layout
    return Reading(recipe, Source(name, data is None, found.info["sha256"], details), found)


def drawn(recipe: Recipe) -> Reading:
    """Questions drawn at random in the shape of CNN's."""
    found = random_inputs.questions(recipe.data, recipe.train.batch)
    return Reading(recipe, random_inputs.source(random_inputs.CNN, *found.arrays.values()), found)


def _encode(files: cloze.Files, config: DataConfig, writer: Writer, loading: Loading) -> dict[str, Any]:
    hashed = hashlib.sha256()
    info = build(config, lambda split: files.questions(split, hashed), writer, loading)
    return {**info, "sha256": hashed.hexdigest()}
