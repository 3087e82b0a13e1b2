"""The experiments by name. Each module offers ``load(data: Path | None, recipe) -> Task`` (None: the stand-in), and
``drawn(recipe) -> Task``, on inputs drawn at random in the shape of the official data (data/drawn.py)."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.data.input_files import unreadable
from rmsnorm_lab.experiments.recipes.common import Recipe

if TYPE_CHECKING:
    from rmsnorm_lab.experiments.task import Task

TASKS = {
    "translation": "parallel text (WMT14 En-De), RNNSearch",
    "transformer": "the same by the Transformer, post-norm or pre-norm",
    "images": "CIFAR-10, ConvPool-CNN-C with statistics over positions",
    "retrieval": "captions of images (COCO) and images of captions, order embeddings with a GRU",
    "reading": "cloze questions (CNN/Daily Mail), the attentive reader with LSTMs",
    "language": "characters of real text, a small decoder-only transformer",
}
"""Name -> description. A task's modules are ``tasks/<name>.py`` and ``recipes/<name>.py``."""
EXAMPLES = {
    "translation": "sentence pairs",
    "transformer": "sentence pairs",
    "images": "images",
    "retrieval": "captioned images",
    "reading": "questions",
    "language": "characters",
}
"""Task -> what a batch has, in words. A row of ``language`` has ``model.context`` of them."""
SIZES = ("small", "medium", "paper")
"""Not every task has every size."""


def recipe(name: str, size: str = "small") -> Recipe:
    """The task's recipe; nothing heavy is imported."""
    of = _recipes(name)
    if size not in of:
        raise UserError(f"--size must be {' or '.join(of)} for {name}; got {size}. Pass one of these.")
    return of[size]()


def sizes(name: str) -> tuple[str, ...]:
    """The sizes of a task."""
    return tuple(_recipes(name))


def _recipes(name: str) -> dict[str, Callable[[], Recipe]]:
    module = importlib.import_module(f"rmsnorm_lab.experiments.recipes.{name}")
    return {size: getattr(module, size) for size in SIZES if hasattr(module, size)}


def module(name: str) -> ModuleType:
    """The task's module; what it offers beside ``load``:

    ``network(recipe, sizes, norm, kernels)``: the untrained network, without the data (``sizes``: the task's).
    ``preprocessor(files)``: what turns an input into what the network takes, from the task's ``files()``.
    """
    return importlib.import_module(f"rmsnorm_lab.experiments.tasks.{name}")


def drawn(name: str, recipe: Recipe) -> "Task":
    """The task on random inputs in the official data's shape, for timing alone."""
    task: Task = module(name).drawn(recipe)
    return task


def load(name: str, data: Path | None, recipe: Recipe) -> "Task":
    """The task on ``data``, or on its stand-in."""
    try:
        task: Task = module(name).load(data, recipe)
    except OSError as error:  # such as a folder on the way that cannot be entered
        raise unreadable(error.filename or data or "the stand-in", error) from None
    except MemoryError:
        raise UserError(
            f"there must be memory for the data; it ran out while {str(data or 'the stand-in')!r} was loaded. "
            "Free memory, or pass less data."
        ) from None
    return task
