"""The stand-in for captioned images: three or four digits in a 2 × 2 grid, five sentences each, in VSE++'s layout.

Captions are made from templates. Each describes a part of the picture: its rows, its columns or a diagonal. No
arrangement of digits and no handwritten digit of one split occurs in another.
"""

from pathlib import Path
from typing import Any

import numpy as np

from rmsnorm_lab.experiments.data.captions import LAYOUTS
from rmsnorm_lab.experiments.data.digits import digits

COUNTS = {"train": 3000, "valid": 200, "test": 400}
"""Number of scenes of each split."""
SHARES = {"train": 0.7, "valid": 0.1, "test": 0.2}
"""Each split's share of the handwritten digits."""
EMPTY = 10
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "nothing")


def write(folder: Path, counts: dict[str, int] | None = None, seed: int = 0) -> str:
    """Write the files of every split into ``folder``; returns the source's name."""
    grey, labels, source = digits()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(grey))
    cuts = (np.cumsum(list(SHARES.values()))[:-1] * len(order)).astype(int)
    handwritten = dict(zip(SHARES, np.split(order, cuts), strict=True))
    taken: set[tuple[int, ...]] = set()
    for split, (captions, images) in LAYOUTS["VSE++"].items():
        lines, rows = [], []
        for _ in range((counts or COUNTS)[split]):
            places = _combination(rng, taken)
            rows.append(_picture(grey, labels, handwritten[split], places, rng))
            lines += _sentences(places, rng)
        np.save(folder / images, np.stack(rows))
        (folder / captions).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return f"scenes of {source}"


def _combination(rng: np.random.Generator, taken: set[tuple[int, ...]]) -> tuple[int, ...]:
    """Digits at the top left, top right, bottom left and bottom right, not drawn before. Half have an empty place."""
    while True:
        places = rng.integers(10, size=4)
        if rng.integers(2):
            places[rng.integers(4)] = EMPTY
        found = tuple(places.tolist())
        if found not in taken:
            taken.add(found)
            return found


def _picture(
    grey: np.ndarray[Any, Any],
    labels: np.ndarray[Any, Any],
    own: np.ndarray[Any, Any],
    places: tuple[int, ...],
    rng: np.random.Generator,
) -> np.ndarray[Any, Any]:
    """The 16 × 16 grey values as one row, made of the split's own handwritten digits."""
    cells = [np.zeros((8, 8)) if d == EMPTY else grey[rng.choice(own[labels[own] == d])] for d in places]
    return np.block([cells[:2], cells[2:]]).reshape(-1).astype(np.float32)


def _sentences(places: tuple[int, ...], rng: np.random.Generator) -> list[str]:
    a, b, c, d = (WORDS[place] for place in places)
    count = "four" if EMPTY not in places else "three"
    empty = "no gap" if EMPTY not in places else f"a gap at the {_NAMES[places.index(EMPTY)]}"
    start = rng.choice(["a picture with", "there is", "we see", "here are"])
    return [
        f"{start} {a} and {b} above {c} and {d}",
        f"{a} left of {b} in the upper row , {c} left of {d} in the lower row",
        f"the left column has {a} over {c} and the right column has {b} over {d}",
        f"{count} digits with {empty} , {a} at the upper left and {d} at the lower right",
        f"{count} digits with {empty} , {b} at the upper right and {c} at the lower left",
    ]


_NAMES = ("upper left", "upper right", "lower left", "lower right")
