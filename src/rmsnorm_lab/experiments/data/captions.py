"""Images as feature vectors with five captions each, in the three layouts that order-embedding work has used.

    Vendrov    {train,val,test}.txt, images/10crop/{train,val,test}.npy (under the folder or its subfolder coco/)
    Kiros      coco_{train,dev,test}_caps.txt, coco_{train,dev,test}_ims.npy
    VSE++      {train,dev,test}_caps.txt, {train,dev,test}_ims.npy

A .txt file has one caption a line; lines 5i to 5i+4 belong to row i of the .npy file, a floating array (N, D). Some
files repeat each row for its five captions. The number of rows shows this, and each row is then taken once.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.data.features import Features
from rmsnorm_lab.experiments.data.lines import begin, read_lines
from rmsnorm_lab.experiments.data.loading import Loading
from rmsnorm_lab.experiments.data.prepared import Writer

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


LONGEST = 1000
"""Words of a caption. A longer line comes from a file that lost its line ends; padding to it would fill the memory."""
END, UNKNOWN, FIRST_WORD = 0, 1, 2
"""Ids: the end of a sentence (also its padding), words that are not in the training captions, and the first word."""


@dataclass(frozen=True)
class Files:
    """The files of the three splits."""

    layout: str
    root: Path

    def paths(self, split: str) -> tuple[Path, Path]:
        """(captions, images)"""
        captions, images = LAYOUTS[self.layout][split]
        return self.root / captions, self.root / images

    def all(self) -> list[Path]:
        return [path for split in SPLITS for path in self.paths(split)]


def find(path: Path) -> Files:
    """The layout with the fewest missing files. None may be missing."""
    missing = {
        (layout, root): [name for pair in files.values() for name in pair if not (root / name).exists()]
        for root in (path, path / "coco")
        for layout, files in LAYOUTS.items()
    }
    (layout, root), lacking = min(missing.items(), key=lambda item: len(item[1]))
    if len(lacking) == 2 * len(SPLITS):
        wanted = "; ".join(f"{name}: {', '.join(files['train'])} …" for name, files in LAYOUTS.items())
        raise UserError(f"--data must be a folder in one of the layouts {wanted}; {str(path)!r} is in none of them.")
    if lacking:
        raise UserError(f"{str(root)!r} in {layout}'s layout lacks {', '.join(lacking)}. Add the missing files.")
    return Files(layout, root)


def build(files: Files, writer: Writer, loading: Loading) -> dict[str, Any]:
    """Write each split's ``images``, float32 (N, D) with rows of norm 1, and ``captions`` as ids.

    Captions 5i to 5i+4 belong to image i. The words of the training captions get ids from FIRST_WORD on, the most
    frequent first.
    """
    hashed, ids, widths = hashlib.sha256(), dict[str, int](), dict[str, int]()
    for split in SPLITS:
        text, vectors = files.paths(split)
        begin(hashed, LAYOUTS[files.layout][split][0], text.stat().st_size)
        words, lengths = _captions(
            loading.over(f"{split} captions", read_lines(text, hashed)), text, ids, split == "train"
        )
        if split == "train":
            counts = np.bincount(words)
            first = {
                word: place for place, word in enumerate(sorted(ids, key=lambda w: (-counts[ids[w]], w)), FIRST_WORD)
            }
            words = np.array([first[word] for word in ids], np.int32)[words]
            ids = first
        writer.ragged(f"{split}.captions", words, lengths)
        features = Features(vectors)
        begin(hashed, LAYOUTS[files.layout][split][1], features.size)
        widths[split] = features.width
        each = _rows_an_image(features, len(lengths), text)
        row = 0
        loading.step(f"{split} images", features.rows)
        for block in features.blocks(each, hashed):
            writer.append(f"{split}.images", _normalised(block, each, row, vectors))
            row += len(block)
            loading.advance(len(block))
    if len(set(widths.values())) > 1:
        raise UserError(
            f"the images of {str(files.root)!r} must have one width; they have {widths}. Fetch the files again."
        )
    return {"sha256": hashed.hexdigest(), "words": list(ids)}


def _captions(
    lines: Iterator[str], path: Path, ids: dict[str, int], learn: bool
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(ids of all captions' words, lengths). ``learn``: a new word gets the next number, from 0 on."""
    words, lengths = array("i"), array("i")
    for number, line in enumerate(lines, 1):
        caption = line.split()
        if not 0 < len(caption) <= LONGEST:
            raise UserError(
                f"{str(path)!r}, line {number:,}: a caption must have 1 to {LONGEST:,} words; it has {len(caption):,}"
                f"{'' if caption else ': the line is empty'}. Correct the line."
            )
        if learn:
            words.extend(ids.setdefault(word, len(ids)) for word in caption)
        else:
            words.extend(ids.get(word, UNKNOWN) for word in caption)
        lengths.append(len(caption))
    return np.array(words, np.int32), np.array(lengths, np.int32)


def _rows_an_image(features: Features, captions: int, text: Path) -> int:
    """5 if the file has a row for each caption, else 1."""
    if features.rows == captions and captions % PER_IMAGE == 0:
        return PER_IMAGE
    if captions != PER_IMAGE * features.rows:
        raise UserError(
            f"{str(text)!r} must have {PER_IMAGE} captions for each row of {str(features.path)!r}: "
            f"{PER_IMAGE * features.rows} lines for {features.rows} rows; it has {captions}. "
            "One of the files is truncated or another split's."
        )
    return 1


def _normalised(rows: NDArray[np.float32], each: int, first: int, path: Path) -> NDArray[np.float32]:
    """One row of norm 1 for each image. ``first`` is the number of the block's first row in the file."""
    groups = rows.reshape(-1, each, rows.shape[1])
    if each > 1 and (unequal := np.flatnonzero((groups != groups[:, :1]).any((1, 2)))).size:
        start = first + each * int(unequal[0])
        raise UserError(
            f"{str(path)!r} has a row for each caption, so the {each} rows of an image must be equal; rows "
            f"{start} to {start + each - 1} are not. Fetch the files again."
        )
    rows = groups[:, 0]
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    wrong = np.flatnonzero(~np.isfinite(norms[:, 0]) | (norms[:, 0] == 0))
    if wrong.size:
        raise UserError(
            f"{str(path)!r}, row {first + each * int(wrong[0])}: a feature vector must be finite and not zero to be "
            f"scaled to norm 1; its norm is {norms[wrong[0], 0]}. Fetch the file again."
        )
    return rows / norms
