"""The look of each normaliser in every figure: told apart by the colour-blind, on white and on dark alike."""

from typing import Any

# Near Okabe and Ito's palette; the line styles part what lies on top of each other.
STYLES: dict[str, tuple[str, Any]] = {
    "none": ("#7F7F7F", (0, (1, 1))),
    "l2": ("#CC79A7", (0, (1, 1))),
    "weight": ("#56B4E9", (0, (5, 1, 1, 1))),
    "batch": ("#D55E00", "-"),
    "group": ("#A6761D", "--"),
    "layer": ("#E69F00", "-"),
    "rms": ("#2A7FC9", "--"),
    "prms": ("#009E73", "-."),
    "dyt": ("#8A6FD1", (0, (3, 1, 1, 1, 1, 1))),
}
"""Normaliser -> colour and Matplotlib's line style."""
