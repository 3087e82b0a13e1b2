"""Images as feature vectors with five captions each, in the three layouts that order-embedding work has used.

    Vendrov    {train,val,test}.txt, images/10crop/{train,val,test}.npy (under the folder or its subfolder coco/)
    Kiros      coco_{train,dev,test}_caps.txt, coco_{train,dev,test}_ims.npy
    VSE++      {train,dev,test}_caps.txt, {train,dev,test}_ims.npy

A .txt has one caption a line, lines 5i to 5i+4 for row i of the .npy (N × D, floating); rows that are repeated for each
of their five captions are recognised by the counts, and taken once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rmsnorm.errors import UserError
from rmsnorm.experiments.data.lines import digest, lines_of, read_bytes

PER_IMAGE = 5
SPLITS = ("train", "valid", "test")
_OFFICIAL: dict[str, tuple[Callable[[str], tuple[str, str]], str]] = {
    "Vendrov": (lambda split: (f"{split}.txt", f"images/10crop/{split}.npy"), "val"),
    "Kiros": (lambda split: (f"coco_{split}_caps.txt", f"coco_{split}_ims.npy"), "dev"),
    "VSE++": (lambda split: (f"{split}_caps.txt", f"{split}_ims.npy"), "dev"),
}
LAYOUTS = {
    name: {split: files(valid if split == "valid" else split) for split in SPLITS}
    for name, (files, valid) in _OFFICIAL.items()
}
"""Layout -> split -> (captions, images)."""


@dataclass(frozen=True)
class Split:
    images: np.ndarray[Any, Any]
    """float32 (N, D), each row of norm 1."""
    captions: list[list[str]]
    """5 N captions as words; 5i to 5i+4 belong to image i."""


@dataclass(frozen=True)
class Captions:
    splits: dict[str, Split]
    layout: str
    sha256: str


def load(path: Path) -> Captions:
    """The three splits of whichever layout ``path`` holds."""
    layout, root = _layout(path)
    splits, read = {}, []
    for split, (captions, images) in LAYOUTS[layout].items():
        text, vectors = read_bytes(root / captions), read_bytes(root / images)
        splits[split] = _split(lines_of(text, root / captions), root / captions, _array(root / images), root / images)
        read += [(captions, text), (images, vectors)]
    widths = {split: found.images.shape[1] for split, found in splits.items()}
    if len(set(widths.values())) > 1:
        raise UserError(f"the images of {str(root)!r} must have one width, have {widths}. Fetch the files again.")
    return Captions(splits, layout, digest(read))


def _layout(path: Path) -> tuple[str, Path]:
    """The layout of which the most files are there; all of them must be."""
    missing = {
        (layout, root): [name for pair in files.values() for name in pair if not (root / name).is_file()]
        for root in (path, path / "coco")
        for layout, files in LAYOUTS.items()
    }
    (layout, root), lacking = min(missing.items(), key=lambda item: len(item[1]))
    if len(lacking) == 2 * len(SPLITS):
        wanted = "; ".join(f"{name}: {', '.join(files['train'])} …" for name, files in LAYOUTS.items())
        raise UserError(f"--data must be a folder in one of the layouts {wanted}; {str(path)!r} is in none of them.")
    if lacking:
        raise UserError(f"{str(root)!r} in {layout}'s layout lacks {', '.join(lacking)}. Add the missing files.")
    return layout, root


def _array(path: Path) -> np.ndarray[Any, Any]:
    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{str(path)!r} must be a .npy array: {error}. Fetch it again.") from None
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype.kind != "f" or not found.size:
        what = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else "an archive of several"
        raise UserError(f"{str(path)!r} must be a floating array (images, features), is {what}. Fetch it again.")
    return found.astype(np.float32)


def _split(lines: list[str], text: Path, rows: np.ndarray[Any, Any], vectors: Path) -> Split:
    if len(rows) == len(lines) and len(lines) % PER_IMAGE == 0:
        groups = rows.reshape(-1, PER_IMAGE, rows.shape[1])
        unequal = np.flatnonzero((groups != groups[:, :1]).any((1, 2)))
        if unequal.size:
            raise UserError(
                f"{str(vectors)!r} has a row for each caption, so {PER_IMAGE} rows must be equal for each image; rows "
                f"{PER_IMAGE * unequal[0]} to {PER_IMAGE * unequal[0] + PER_IMAGE - 1} are not. Fetch the files again."
            )
        rows = groups[:, 0]
    if len(lines) != PER_IMAGE * len(rows):
        raise UserError(
            f"{str(text)!r} must have {PER_IMAGE} captions for each row of {str(vectors)!r}: {PER_IMAGE * len(rows)} "
            f"lines for {len(rows)} rows, has {len(lines)}. One of the files is truncated or another split's."
        )
    captions = [line.split() for line in lines]
    for number, words in enumerate(captions, 1):
        if not words:
            raise UserError(f"{str(text)!r}, line {number}: a caption must have a word, is empty. Mend the line.")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    wrong = np.flatnonzero(~np.isfinite(norms[:, 0]) | (norms[:, 0] == 0))
    if wrong.size:
        raise UserError(
            f"{str(vectors)!r}, row {wrong[0]}: a feature vector must be finite and not zero to be scaled to norm 1, "
            f"its norm is {norms[wrong[0], 0]}. Fetch the file again."
        )
    return Split(rows / norms, captions)
