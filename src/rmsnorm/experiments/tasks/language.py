"""Text as a sequence of characters: any UTF-8 file or folder, or the standard library of the running Python.

The split is by file, so that nothing held out has been seen in a neighbouring line: files are taken in the order of
the SHA-256 of their names until a tenth of the characters is held out. A single file gives its last tenth.
"""

import hashlib
import os
import platform
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rmsnorm.errors import UserError

HELD_OUT_SHARE = 10
"""One character in ten is held out."""
_TESTS = {"test", "tests", "idle_test"}


@dataclass(frozen=True)
class Source:
    """Where the text came from, as recorded: never a path of this machine."""

    name: str
    stand_in: bool
    files: int
    characters: int
    split: str
    sha256: str


@dataclass(frozen=True)
class Text:
    """Character ids; the last id of the vocabulary stands for every character that the training part lacks."""

    source: Source
    train: Tensor
    held_out: Tensor
    vocabulary: int
    unigram_bits: float
    """Bits per held-out character of a model that knows the training part's character frequencies and no more."""


def load(path: Path | None, context: int, batch: int) -> Text:
    """Read, split and encode; ``context`` and ``batch`` say how much text is needed."""
    files = _standard_library() if path is None else _read(path)
    name = f"Python {platform.python_version()} standard library" if path is None else path.resolve().name
    train, held_out, split = _split(files)

    needed_train, needed_held_out = batch * (context + 1), context + 1
    if len(train) < needed_train or len(held_out) < needed_held_out:
        needed = max(needed_train * HELD_OUT_SHARE // (HELD_OUT_SHARE - 1), needed_held_out * HELD_OUT_SHARE) + 1
        raise UserError(
            f"the text must give at least {needed_train:,} training and {needed_held_out:,} held-out characters; "
            f"{name!r} gives {len(train):,} and {len(held_out):,}. Pass --data with at least {needed:,} characters."
        )
    source = Source(
        name=name,
        stand_in=path is None,
        files=len(files),
        characters=len(train) + len(held_out),
        split=split,
        sha256=_digest(files),
    )
    return _encode(source, train, held_out)


def _standard_library() -> dict[str, str]:
    """The .py files that Python names as its standard library, without its tests and without site-packages."""
    root = Path(sysconfig.get_path("stdlib"))
    files: dict[str, Path] = {}
    for module in sys.stdlib_module_names:  # not a walk of everything: site-packages lies in there too
        for path in [root / f"{module}.py", *(root / module).rglob("*.py")]:
            name = path.relative_to(root)
            if path.is_file() and not _TESTS & set(name.parts):
                files[name.as_posix()] = path
    if not files:
        raise UserError(
            "this Python carries no sources of its standard library to train on; pass --data FILE_OR_FOLDER"
        )
    return {name: _decode(files[name]) for name in sorted(files)}


def _read(path: Path) -> dict[str, str]:
    """All files under ``path`` by name; hidden files and folders are left out."""
    if path.is_file():
        return {path.name: _decode(path)}
    if not path.is_dir():
        raise UserError(f"--data must name a file or a folder; {str(path)!r} is neither. Check the spelling.")
    names = [file.relative_to(path) for file in path.rglob("*") if file.is_file()]
    shown = sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))
    if not shown:
        raise UserError(f"--data must hold text; the folder {str(path)!r} holds no files. Pass another one.")
    return {name: _decode(path / name) for name in shown}


def _decode(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"the text must be UTF-8; {str(path)!r} is not, at byte {error.start}: {error.reason}. "
            "Convert the file (iconv -f ENCODING -t UTF-8) or take it out of the folder."
        ) from None
    except OSError as error:
        raise UserError(f"--data must be readable; {str(path)!r} is not: {error.strerror}.") from None


def _split(files: dict[str, str]) -> tuple[str, str, str]:
    """(training part, held-out part, how)."""
    if len(files) == 1:
        (text,) = files.values()
        cut = len(text) - len(text) // HELD_OUT_SHARE
        return text[:cut], text[cut:], "the last tenth of the file"
    wanted = sum(map(len, files.values())) / HELD_OUT_SHARE
    order = sorted(files, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())
    held_out, length = set(), 0
    for name in order[:-1]:  # at least one file stays for training
        if length >= wanted:
            break
        held_out.add(name)
        length += len(files[name])
    train = "".join(text for name, text in files.items() if name not in held_out)
    return train, "".join(files[name] for name in sorted(held_out)), "by file"


def _digest(files: dict[str, str]) -> str:
    digest = hashlib.sha256()
    for name, text in files.items():
        content = text.encode()
        digest.update(f"{name!r} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()


def _encode(source: Source, train: str, held_out: str) -> Text:
    train_points, held_out_points = _code_points(train), _code_points(held_out)
    known = np.flatnonzero(np.bincount(train_points))
    ids = np.full(sys.maxunicode + 1, len(known), dtype=np.int32)
    ids[known] = np.arange(len(known))
    train_ids, held_out_ids = ids[train_points], ids[held_out_points]

    counts = (
        np.bincount(train_ids, minlength=len(known) + 1) + 1.0
    )  # one more each: an unseen character costs, finitely
    bits = -np.log2(counts / counts.sum())
    return Text(
        source=source,
        train=torch.from_numpy(train_ids),
        held_out=torch.from_numpy(held_out_ids),
        vocabulary=len(known) + 1,
        unigram_bits=float(bits[held_out_ids].mean()),
    )


def _code_points(text: str) -> np.ndarray[Any, np.dtype[np.uint32]]:
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)


def batch_of(ids: Tensor, batch: int, context: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
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
