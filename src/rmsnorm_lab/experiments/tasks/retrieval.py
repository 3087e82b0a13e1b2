"""Finding the caption of an image and the image of a caption, by order embeddings."""

import json
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments import norms
from rmsnorm_lab.experiments.data import captions, digit_scenes
from rmsnorm_lab.experiments.data import drawn as random_inputs
from rmsnorm_lab.experiments.data.captions import END, FIRST_WORD, PER_IMAGE, SPLITS
from rmsnorm_lab.experiments.data.epochs import check_enough, chosen, numpy_generator
from rmsnorm_lab.experiments.data.prepared import Prepared, prepare, temporary
from rmsnorm_lab.experiments.data.ragged import Ragged
from rmsnorm_lab.experiments.models.order_embedding import OrderEmbedding, gathered, order_errors, ranking_loss
from rmsnorm_lab.experiments.processes import shared
from rmsnorm_lab.experiments.recipes.common import Recipe
from rmsnorm_lab.experiments.task import Metric, Source

WORDS = "words.json"
RECALLS = (1, 5, 10)
_CHUNK = 50
"""Number of images whose errors with all captions of a fold are computed together, if they are at most _ERRORS."""
_ERRORS = 50 * 5000
"""1 GB at 1024 units."""


class Split(NamedTuple):
    images: np.ndarray[Any, Any]
    """float32 (N, D), each row of norm 1, mapped from a file."""
    captions: Ragged
    """5 N captions as ids; 5i to 5i+4 belong to image i."""


class Batch(NamedTuple):
    images: Tensor
    """(B, features)"""
    words: Tensor
    """(B, T), each caption with its END."""
    lengths: Tensor
    """(B)"""


class Retrieval:
    """See :class:`rmsnorm_lab.experiments.task.Task`."""

    name = "retrieval"
    metrics = (
        *(Metric(f"caption_r{k}", f"caption\nR@{k}", True, ".1f") for k in RECALLS),
        Metric("caption_mean_rank", "caption\nmean rank", False, ".1f"),
        *(Metric(f"image_r{k}", f"image\nR@{k}", True, ".1f") for k in RECALLS),
        Metric("image_mean_rank", "image\nmean rank", False, ".1f"),
    )

    def __init__(self, recipe: Recipe, source: Source, found: Prepared) -> None:
        self.recipe, self.source = recipe, source
        self.splits = {
            split: Split(found.arrays[f"{split}.images"], found.ragged(f"{split}.captions")) for split in SPLITS
        }
        check_enough(len(self.splits["train"].images), recipe.train.batch, source.name, "images")
        for split in ("valid", "test"):
            if len(self.splits[split].images) < 2:
                raise UserError(f"the {split} part of {source.name!r} must have 2 images or more. Pass more data.")
        self.ids = {word: i for i, word in enumerate(found.info["words"], FIRST_WORD)}
        self.sizes = {"features": self.splits["train"].images.shape[1], "vocabulary": FIRST_WORD + len(self.ids)}
        fold = min(recipe.data.fold, len(self.splits["test"].images))
        self.references = {"guessing": 100 / fold}

    def model(self, norm: str, kernels: str) -> nn.Module:
        return network(self.recipe, self.sizes, norm, kernels)

    def batch(self, step: int, seed: int) -> Batch:
        """One random caption of each image an epoch."""
        train, size = self.splits["train"], self.recipe.train.batch
        images, epoch = chosen(step, seed, len(train.images), size)
        which = numpy_generator(seed, epoch, 1).integers(PER_IMAGE, size=len(train.images))
        return self._batch(train, images, PER_IMAGE * images + which[images])

    def _batch(self, split: Split, images: np.ndarray[Any, Any], chosen: np.ndarray[Any, Any]) -> Batch:
        return Batch(torch.from_numpy(split.images[images]), *self._words([split.captions[i] for i in chosen]))

    def _words(self, sentences: list[np.ndarray[Any, Any]]) -> tuple[Tensor, Tensor]:
        lengths = torch.tensor([len(sentence) + 1 for sentence in sentences])
        words = torch.full((len(sentences), int(lengths.max())), END)
        for row, sentence in zip(words, sentences, strict=True):
            row[: len(sentence)] = torch.from_numpy(sentence.astype(np.int64))
        return words, lengths

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum over the mismatches of this process's images and captions with those of all."""
        (images, captions), own = gathered(*model(*batch))
        return ranking_loss(order_errors(images, captions), self.recipe.model.margin, own)

    def weight(self, batch: Batch) -> float:
        """The share of the step's batch: the paper's loss is the whole batch's sum."""
        return len(batch.lengths) / self.recipe.train.batch

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        assert isinstance(model, OrderEmbedding)
        part, fold = self.splits[split], self.recipe.data.fold
        if split == "valid" and self.recipe.data.whole_validation:
            fold = len(part.images)
        folds = max(len(part.images) // fold, 1) if split == "test" else 1
        found = [self._fold(model, part, slice(i * fold, (i + 1) * fold)) for i in range(folds)]
        return {key: float(np.mean([each[key] for each in found])) for key in found[0]}

    def _fold(self, model: OrderEmbedding, part: Split, rows: slice) -> dict[str, float]:
        device = next(model.parameters()).device
        features = torch.from_numpy(part.images[rows].copy()).to(device)
        captions = range(len(part.captions))[rows.start * PER_IMAGE : rows.stop * PER_IMAGE]
        sentences = [part.captions[i] for i in captions]
        images_ID = model.images(features).float()
        parts = [self._words(sentences[i : i + 500]) for i in range(0, len(sentences), 500)]
        read = shared(lambda part: model.captions(*(each.to(device) for each in part)).float().cpu(), parts)
        captions_CD = torch.cat(read).to(device)
        chunk = max(min(_CHUNK, _ERRORS // len(sentences)), 1)
        errors_IC = torch.cat(shared(lambda some: order_errors(some, captions_CD).cpu(), images_ID.split(chunk)))
        of_captions, of_images = ranks(errors_IC)
        pairs, trained = len(images_ID), self.recipe.train.batch
        loss = ranking_loss(errors_IC[:, ::PER_IMAGE], self.recipe.model.margin).item()
        figures = {"loss": loss * trained * (trained - 1) / (pairs * (pairs - 1))}  # as of a batch of training
        for name, found in (("caption", of_captions), ("image", of_images)):
            figures |= {f"{name}_r{k}": 100 * (found <= k).double().mean().item() for k in RECALLS}
            figures[f"{name}_mean_rank"] = found.double().mean().item()
        return figures

    def initialise(self, model: nn.Module, seed: int) -> None:
        pass

    def files(self) -> dict[str, bytes]:
        return {WORDS: json.dumps(list(self.ids)).encode()}


def preprocessor(files: Mapping[str, bytes]) -> list[str]:
    """The words in the order of their ids, from FIRST_WORD on."""
    return list(json.loads(files[WORDS]))


def network(recipe: Recipe, sizes: dict[str, int], norm: str, kernels: str) -> nn.Module:
    """The untrained network."""
    return OrderEmbedding(sizes["features"], sizes["vocabulary"], recipe.model, norms.made(norm, kernels, recipe.p))


def ranks(errors_IC: Tensor) -> tuple[Tensor, Tensor]:
    """From E(image, caption), captions 5i to 5i+4 being those of image i: the rank, from 1, of the best of each image's
    five captions among the captions (I), and of each caption's image among the images (C).

    Ties count as ranked before it, so a network that says the same about everything finds nothing.
    """
    count = len(errors_IC)
    mine = torch.arange(count).repeat_interleave(PER_IMAGE) == torch.arange(count)[:, None]
    best_I1 = errors_IC.masked_fill(~mine, torch.inf).min(1, keepdim=True).values
    of_captions = 1 + ((errors_IC <= best_I1) & ~mine).sum(1)
    own_C = errors_IC[mine.nonzero(as_tuple=True)]
    of_images = (errors_IC <= own_C).sum(0)
    return of_captions, of_images


def load(data: Path | None, recipe: Recipe) -> Retrieval:
    """Captioned images in one of three layouts, or scenes of digits."""
    if data is None:
        with tempfile.TemporaryDirectory() as folder:
            name, files = digit_scenes.write(Path(folder)), captions.find(Path(folder))
            found = temporary(partial(captions.build, files))
    else:
        name, files = data.resolve().name, captions.find(data)
        found = prepare("retrieval", data, files.all, {"layout": files.layout}, partial(captions.build, files))
    details: dict[str, Any] = {f"{split} images": len(found.arrays[f"{split}.images"]) for split in SPLITS}
    details["layout"] = files.layout
    return Retrieval(recipe, Source(name, data is None, found.info["sha256"], details), found)


def drawn(recipe: Recipe) -> Retrieval:
    """Captioned images drawn at random in the shape of COCO's."""
    found = random_inputs.captions(recipe.train.batch)
    return Retrieval(recipe, random_inputs.source(random_inputs.COCO, *found.arrays.values()), found)
