"""A ``.npy`` file of feature vectors, read block by block: COCO's repeated rows take 10 GB."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.data.input_files import opened, unreadable

_BLOCK = 1 << 25
"""Bytes read at a time."""


class Features:
    """A floating array (rows, width), whose header is checked against the file's size before anything is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with opened(path) as file:
            try:
                version = np.lib.format.read_magic(file)
                read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                if version not in read:
                    raise ValueError(f"it has version {version} of the format")
                shape, self._by_column, self.dtype = read[version](file)
            except (ValueError, EOFError) as error:
                raise UserError(f"{str(path)!r} must be a .npy array: {error}. Download it again.") from None
            self._start, self.size = file.tell(), os.fstat(file.fileno()).st_size
        if len(shape) != 2 or self.dtype.kind != "f" or 0 in shape:
            raise UserError(
                f"{str(path)!r} must be a floating array (images, features); it is {self.dtype} {shape}. "
                "Download it again."
            )
        self.rows, self.width = shape
        wanted = self.rows * self.width * self.dtype.itemsize
        if self.size - self._start != wanted:
            raise UserError(
                f"{str(path)!r} must be a .npy array whose header tells its size; {self.dtype} {shape} takes "
                f"{wanted:,} bytes, and {self.size - self._start:,} follow the header. It is truncated or damaged. "
                "Download it again."
            )

    def blocks(self, multiple: int, hashed: Any) -> Iterator[NDArray[np.float32]]:
        """All rows in order, in blocks of a ``multiple`` of rows (the last may have fewer).

        Arguments:
            hashed: is updated with the bytes of the file, in their order.
        """
        size = max(_BLOCK // (self.width * self.dtype.itemsize) // multiple, 1) * multiple
        with opened(self.path) as file:
            try:
                hashed.update(file.read(self._start))
                if self._by_column:
                    while content := file.read(_BLOCK):
                        hashed.update(content)
                for start in range(0, self.rows, size):
                    count = min(size, self.rows - start)
                    if self._by_column:
                        yield self._columns(file, start, count)
                    else:
                        content = file.read(count * self.width * self.dtype.itemsize)
                        hashed.update(content)
                        yield np.frombuffer(content, self.dtype).reshape(count, self.width).astype(np.float32)
            except OSError as error:
                raise unreadable(self.path, error) from None

    def _columns(self, file: BinaryIO, start: int, count: int) -> NDArray[np.float32]:
        """``count`` rows from ``start`` on of a file that holds one column after the other."""
        rows = np.empty((count, self.width), np.float32)
        for column in range(self.width):
            file.seek(self._start + (column * self.rows + start) * self.dtype.itemsize)
            rows[:, column] = np.frombuffer(file.read(count * self.dtype.itemsize), self.dtype)
        return rows
