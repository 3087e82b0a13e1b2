"""Classifying images: CIFAR-10, or scikit-learn's digits as a stand-in. No augmentation, ZCA-whitened."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments import norms
from rmsnorm_lab.experiments.data import cifar10, digits
from rmsnorm_lab.experiments.data import drawn as random_inputs
from rmsnorm_lab.experiments.data.epochs import check_enough, chosen
from rmsnorm_lab.experiments.data.official import FILES, OTHER_FILES
from rmsnorm_lab.experiments.models.conv_pool import ConvPool
from rmsnorm_lab.experiments.processes import shared
from rmsnorm_lab.experiments.recipes.common import Recipe
from rmsnorm_lab.experiments.task import Batch, Metric, Source

Array = np.ndarray[Any, Any]
WHITENING = "whitening.npz"
_EVALUATION_BATCH = 500


class Images:
    """See :class:`rmsnorm_lab.experiments.task.Task`."""

    name = "images"
    metrics = (Metric("test_error", "test error, %", higher_is_better=False, form=".2f", on_validation="error, %"),)

    def __init__(
        self, recipe: Recipe, source: Source, images: digits.Images, whiten: "Whitening | None" = None
    ) -> None:
        """``whiten``: of the images; None: learnt from the training images."""
        self.recipe, self.source, self.classes = recipe, source, images.classes
        kept = len(images.train) - recipe.data.held_out
        if kept < 1:
            raise UserError(
                f"the recipe holds out {recipe.data.held_out} training images; {source.name!r} has "
                f"{len(images.train)}. Pass more data."
            )
        check_enough(kept, recipe.train.batch, source.name, "images")
        self.sizes = {"channels": images.train.shape[1], "classes": images.classes}
        self.whiten = whiten = whiten or zca(images.train[:kept], recipe.data.zca)
        self.train = _tensors(whiten(images.train[:kept]), images.train_labels[:kept])
        test = _tensors(whiten(images.test), images.test_labels)
        valid = _tensors(whiten(images.train[kept:]), images.train_labels[kept:]) if recipe.data.held_out else test
        self.splits = {"valid": valid, "test": test}
        guess = np.bincount(images.train_labels[:kept], minlength=images.classes).argmax()
        self.references = {"the most frequent class": 100 * float((images.test_labels != guess).mean())}

    def model(self, norm: str, kernels: str) -> nn.Module:
        return network(self.recipe, self.sizes, norm, kernels)

    def batch(self, step: int, seed: int) -> Batch:
        indices, _ = chosen(step, seed, len(self.train[0]), self.recipe.train.batch)
        return tuple(part[indices] for part in self.train)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Summed cross-entropy in nats."""
        pixels, labels = batch
        return F.cross_entropy(model(pixels).float(), labels, reduction="sum")

    def weight(self, batch: Batch) -> float:
        """Images."""
        return len(batch[1])

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        device = next(model.parameters()).device
        pixels, labels = self.splits[split]
        logits = torch.cat(shared(lambda part: model(part.to(device)).float().cpu(), pixels.split(_EVALUATION_BATCH)))
        wrong = (logits.argmax(1) != labels).double().mean().item()
        return {"test_error": 100 * wrong, "loss": F.cross_entropy(logits, labels).item()}

    def initialise(self, model: nn.Module, seed: int) -> None:
        """As in the paper's baselines, a network without norms of its activations is scaled to the first images."""
        if isinstance(model, ConvPool) and model.bare:
            config = self.recipe.model
            count = min(config.start_images or self.recipe.train.batch, len(self.train[0]))
            indices, _ = chosen(0, seed, len(self.train[0]), count)
            model.initialise(self.train[0][indices])

    def files(self) -> dict[str, bytes]:
        content = io.BytesIO()
        np.savez(content, **self.whiten._asdict())
        return {WHITENING: content.getvalue()}


def preprocessor(files: Mapping[str, bytes]) -> "Whitening":
    """The whitening of the training images."""
    with np.load(io.BytesIO(files[WHITENING]), allow_pickle=False) as found:
        return Whitening(found["mean"], found["matrix"])


def network(recipe: Recipe, sizes: dict[str, int], norm: str, kernels: str) -> nn.Module:
    """The untrained network."""
    return ConvPool(sizes["channels"], sizes["classes"], recipe.model, norms.made(norm, kernels, recipe.p))


class Whitening(NamedTuple):
    """Images (N, C, Y, X) -> (x − mean) @ matrix, each image x being a row of D = C·Y·X pixels."""

    mean: Array
    """(D)"""
    matrix: Array
    """(D, D)"""

    def __call__(self, images: Array) -> Array:
        rows = (images.reshape(len(images), -1) - self.mean) @ self.matrix
        return rows.reshape(images.shape).astype(np.float32)


def zca(images: Array, eps: float) -> Whitening:
    """Images -> images whose pixels are uncorrelated with variance 1 over the given ones, and nearest to them.

    With covariance U diag(λ) Uᵀ: (x − mean) · U diag(1/√(λ + eps)) Uᵀ.
    """
    rows = images.reshape(len(images), -1).astype(np.float64)
    mean = rows.mean(0)
    values, vectors = np.linalg.eigh(np.cov(rows, rowvar=False, bias=True))
    return Whitening(mean, (vectors / np.sqrt(values.clip(0) + eps)) @ vectors.T)


def _tensors(pixels: Array, labels: Array) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(pixels), torch.from_numpy(labels)


def load(data: Path | None, recipe: Recipe) -> Images:
    """CIFAR-10's archive or folder, or the digits."""
    if data is None:
        images, name = digits.load()
    else:
        images, name = cifar10.load(data), data.resolve().name
    details: dict[str, Any] = {
        "training images": len(images.train) - recipe.data.held_out,
        "held out": recipe.data.held_out,
    }
    details["test images"] = len(images.test)
    source = Source(name, data is None, images.sha256, details | ({} if images.official else {FILES: OTHER_FILES}))
    return Images(recipe, source, images)


def drawn(recipe: Recipe) -> Images:
    """Images drawn at random in the shape of CIFAR-10's, as they are after whitening."""
    images = random_inputs.images(recipe.data.held_out + 10 * recipe.train.batch)
    pixels = images.train[0].size
    whitened = Whitening(np.zeros(pixels, np.float32), np.eye(pixels, dtype=np.float32))
    source = random_inputs.source(random_inputs.CIFAR10, images.train, images.train_labels)
    return Images(recipe, source, images, whitened)
