"""Rows of unequal lengths in two arrays. Millions of row objects would take many times the memory."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Ragged:
    """``values[starts[i]:starts[i + 1]]`` is row i."""

    values: NDArray[Any]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, values: NDArray[Any], lengths: NDArray[Any]) -> "Ragged":
        """Rows that follow each other in ``values``."""
        return cls(values, np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> NDArray[Any]:
        return self.values[self.starts[index] : self.starts[index + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.starts)

    def only(self, kept: NDArray[np.bool_]) -> "Ragged":
        """The rows where ``kept`` is true."""
        lengths = self.lengths
        return Ragged.of(self.values[np.repeat(kept, lengths)], lengths[kept])

    def take(self, rows: NDArray[np.int64]) -> "Ragged":
        """The rows with these numbers, in this order."""
        lengths = self.lengths[rows]
        shifts = self.starts[rows] - (np.cumsum(lengths) - lengths)
        return Ragged.of(self.values[np.repeat(shifts, lengths) + np.arange(lengths.sum())], lengths)
