"""Translation by the Transformer (§2 of the paper), on WMT's En-De or any parallel text; without data, on dates."""

from pathlib import Path

from torch import nn

from rmsnorm_lab.experiments import norms
from rmsnorm_lab.experiments.models.encoder_decoder import EncoderDecoder
from rmsnorm_lab.experiments.recipes.common import Recipe
from rmsnorm_lab.experiments.tasks import parallel_text
from rmsnorm_lab.experiments.tasks.parallel_text import ParallelTextTask, preprocessor

__all__ = ["drawn", "load", "network", "preprocessor"]


def load(data: Path | None, recipe: Recipe) -> ParallelTextTask:
    """The task on the folder ``data`` (data/parallel.py says what it must hold), or on the stand-in."""
    return parallel_text.load("transformer", network, data, recipe)


def drawn(recipe: Recipe) -> ParallelTextTask:
    """The task on inputs drawn at random in the shape of WMT14 En-De."""
    return parallel_text.drawn("transformer", network, recipe)


def network(recipe: Recipe, sizes: dict[str, int], norm: str, kernels: str) -> nn.Module:
    """The untrained network."""
    return EncoderDecoder(sizes["vocabulary"], recipe.model, norms.made(norm, kernels, recipe.p))
