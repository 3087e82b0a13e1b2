"""Text as a sequence of characters: any UTF-8 file or folder, or the standard library of the running Python.

The split is by file, so that nothing held out has been seen in a neighbouring line: files are taken in the order of
the SHA-256 of their names until a tenth of the characters is held out. A single file gives its last tenth.
"""

import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments import norms
from rmsnorm_lab.experiments.data import drawn as random_inputs
from rmsnorm_lab.experiments.data import standard_library
from rmsnorm_lab.experiments.data.input_files import read_bytes, walk
from rmsnorm_lab.experiments.data.lines import decode, digest
from rmsnorm_lab.experiments.models.decoder_only import Transformer
from rmsnorm_lab.experiments.processes import shared
from rmsnorm_lab.experiments.recipes.common import Recipe
from rmsnorm_lab.experiments.task import Batch, Metric, Source, torch_generator
from rmsnorm_lab.files import sha256_of

CHARACTERS = "characters.json"
HELD_OUT_SHARE = 10
"""One character in ten is held out."""


NATS_TO_BITS = 1 / math.log(2)
_EVALUATION_BATCH = 64
_BLOCK = 1 << 20
"""Number of characters encoded together: all at once would take 17 bytes each."""


@dataclass(frozen=True)
class Text:
    """Character ids; the last id of the vocabulary is for every character that the training part does not have."""

    train: Tensor
    held_out: Tensor
    characters: str
    """The characters of the training part: the id of each is its place."""
    unigram_bits: float
    """Bits per held-out character of a model that knows the training part's character frequencies and no more."""

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        return len(self.characters) + 1


class Language:
    """Next characters of a text; see :class:`rmsnorm_lab.experiments.task.Task`."""

    name = "language"
    metrics = (Metric("bits", "held-out bits\nper character", higher_is_better=False, form=".3f"),)

    def __init__(self, recipe: Recipe, source: Source, text: Text) -> None:
        self.recipe, self.source, self.text = recipe, source, text
        self.sizes = {"vocabulary": text.vocabulary}
        self.references = {"guessing": math.log2(text.vocabulary), "character frequencies alone": text.unigram_bits}
        windows = fixed_windows(text.held_out, 2 * recipe.data.evaluation_windows, recipe.model.context)
        self.windows = {  # of one file the neighbours: what is chosen by "valid" says something of "test"
            split: tuple(part[start::2] for part in windows) for split, start in (("valid", 0), ("test", 1))
        }

    def model(self, norm: str, kernels: str) -> nn.Module:
        return network(self.recipe, self.sizes, norm, kernels)

    def batch(self, step: int, seed: int) -> Batch:
        train, model = self.recipe.train, self.recipe.model
        return random_windows(self.text.train, train.batch, model.context, torch_generator(step, seed))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Summed cross-entropy in nats."""
        inputs, targets = batch
        logits = model(inputs).float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")

    def weight(self, batch: Batch) -> float:
        """Characters."""
        return int(batch[1].numel())

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        device = next(model.parameters()).device
        inputs, targets = self.windows[split]
        batches = list(zip(inputs.split(_EVALUATION_BATCH), targets.split(_EVALUATION_BATCH), strict=True))
        sums = shared(lambda batch: self.loss(model, tuple(part.to(device) for part in batch)).item(), batches)
        nats = sum(sums) / targets.numel()
        return {"bits": nats * NATS_TO_BITS, "loss": nats}

    def initialise(self, model: nn.Module, seed: int) -> None:
        """Nothing depends on data."""

    def files(self) -> dict[str, bytes]:
        return {CHARACTERS: json.dumps(self.text.characters).encode()}


def preprocessor(files: Mapping[str, bytes]) -> str:
    """The characters in the order of their ids."""
    return str(json.loads(files[CHARACTERS]))


def network(recipe: Recipe, sizes: dict[str, int], norm: str, kernels: str) -> nn.Module:
    """The untrained network."""
    return Transformer(sizes["vocabulary"], recipe.model, norms.made(norm, kernels, recipe.p))


def load(data: Path | None, recipe: Recipe) -> Language:
    """Read, split and encode a UTF-8 file or folder, or the standard library of the running Python."""
    files = standard_library.sources() if data is None else _read(data)
    name = standard_library.NAME if data is None else data.resolve().name
    train, held_out, split = _split(files)

    window = recipe.model.context + 1
    needed_train, needed_held_out = recipe.train.batch * window, 2 * window
    if len(train) < needed_train or len(held_out) < needed_held_out:
        needed = max(needed_train * HELD_OUT_SHARE // (HELD_OUT_SHARE - 1), needed_held_out * HELD_OUT_SHARE) + 1
        raise UserError(
            f"the text must give at least {needed_train:,} training and {needed_held_out:,} held-out characters; "
            f"{name!r} gives {len(train):,} and {len(held_out):,}. Pass --data with at least {needed:,} characters."
        )
    details = {"files": len(files), "characters": len(train) + len(held_out), "held out": split}
    source = Source(
        name=name,
        stand_in=data is None,
        sha256=digest((name, text.encode()) for name, text in files.items()),
        details=details,
    )
    return Language(recipe, source, _encode(train, held_out))


def drawn(recipe: Recipe) -> Language:
    """Characters drawn at random."""
    window = recipe.model.context + 1
    ids = torch.from_numpy(random_inputs.characters(20 * recipe.train.batch * window))
    held_out = ids[: (2 * recipe.data.evaluation_windows + 1) * window]
    characters = "".join(map(chr, range(random_inputs.CHARACTERS)))
    text = Text(ids, held_out, characters, unigram_bits=math.log2(random_inputs.CHARACTERS))
    return Language(recipe, random_inputs.source(random_inputs.TEXT, ids.numpy()), text)


def _read(path: Path) -> dict[str, str]:
    """All files under ``path`` by name; hidden files and folders are left out."""
    if not path.is_dir():
        if not path.exists():
            raise UserError(f"--data must name a file or a folder; {str(path)!r} is neither. Check the spelling.")
        return {"": decode(read_bytes(path), path)}  # names decide the split of a folder, and nothing here
    if not (names := walk(path)):
        raise UserError(f"--data must hold text; the folder {str(path)!r} holds no files. Pass another one.")
    return {name: decode(read_bytes(path / name), path / name) for name in names}


def _split(files: dict[str, str]) -> tuple[str, str, str]:
    """(training part, held-out part, how)."""
    if len(files) == 1:
        (text,) = files.values()
        cut = len(text) - len(text) // HELD_OUT_SHARE
        return text[:cut], text[cut:], "the last tenth of the file"
    wanted = sum(map(len, files.values())) / HELD_OUT_SHARE
    order = sorted(files, key=lambda name: sha256_of(os.fsencode(name)))
    held_out, length = set(), 0
    for name in order[:-1]:  # at least one file stays for training
        if length >= wanted:
            break
        held_out.add(name)
        length += len(files[name])
    train = "".join(text for name, text in files.items() if name not in held_out)
    return train, "".join(files[name] for name in sorted(held_out)), "by file"


def _encode(train: str, held_out: str) -> Text:
    known = sorted(map(ord, set(train)))
    ids = np.full(sys.maxunicode + 1, len(known), np.uint8 if len(known) < 256 else np.int32)
    ids[known] = np.arange(len(known))
    train_ids, held_out_ids = _ids(train, ids), _ids(held_out, ids)

    counts = np.ones(len(known) + 1)  # one more each: an unseen character costs, finitely
    for start in range(0, len(train_ids), _BLOCK):
        counts += np.bincount(train_ids[start : start + _BLOCK], minlength=len(counts))
    bits = -np.log2(counts / counts.sum())
    return Text(
        train=torch.from_numpy(train_ids),
        held_out=torch.from_numpy(held_out_ids),
        characters="".join(map(chr, known)),
        unigram_bits=float(bits[held_out_ids].mean()),
    )


def _ids(text: str, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The id of each character, from the ids of all code points."""
    found = np.empty(len(text), ids.dtype)
    for start in range(0, len(text), _BLOCK):
        block = text[start : start + _BLOCK]
        found[start : start + len(block)] = ids[np.frombuffer(block.encode("utf-32-le"), np.uint32)]
    return found


def random_windows(ids: Tensor, batch: int, context: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``batch`` windows at random places: inputs and targets, both (batch, context), the targets one further on."""
    starts = torch.randint(len(ids) - context, (batch, 1), generator=generator)
    windows = ids[starts + torch.arange(context + 1)].long()
    return windows[:, :-1], windows[:, 1:]


def fixed_windows(ids: Tensor, count: int, context: int) -> tuple[Tensor, Tensor]:
    """Up to ``count`` windows, evenly spaced and without overlap: the same for every run on this text."""
    count = min(count, (len(ids) - 1) // context)
    starts = (torch.arange(count) * (len(ids) - context - 1) // max(count - 1, 1)).unsqueeze(1)
    windows = ids[starts + torch.arange(context + 1)].long()
    return windows[:, :-1], windows[:, 1:]
