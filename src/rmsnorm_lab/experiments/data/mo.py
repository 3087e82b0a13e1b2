"""Compiled catalogs of gettext (``.mo``): every string as bytes, with nothing read outside of the file.

The standard library's ``gettext`` does not return the English plural, Babel reads every catalog as UTF-8, and polib
does not check the file's length. So the format (two tables of lengths and offsets, GNU gettext's manual §10.3) is read
here.
"""

import numpy as np
from numpy.typing import NDArray

from rmsnorm_lab.errors import UserError

MAGIC = 0x950412DE
_HEADER = 28
"""Bytes: magic number, revision, number of strings, offsets of both tables, size and offset of a hash table."""


def read_mo(content: bytes, name: str) -> list[tuple[bytes, bytes]]:
    """(message, translation) of every entry. ``name`` is the file's, for errors.

    Raises:
        UserError: it is no such file, or is damaged.
    """
    order = next((order for order in "<>" if content[:4] == np.array(MAGIC, f"{order}u4").tobytes()), None)
    if order is None:
        raise UserError(f"{name} must be a compiled catalog of gettext (.mo); it begins with {content[:4]!r}.")
    if len(content) < _HEADER:
        raise _damaged(name, f"it has {len(content)} bytes")
    _, revision, count, *offsets = (int(word) for word in np.frombuffer(content, f"{order}u4", 5))
    if revision >> 16 > 1:
        raise UserError(f"{name} must be of revision 0 or 1 of gettext's format; it is of revision {revision >> 16}.")
    messages, translations = (_strings(content, order, count, offset, name) for offset in offsets)
    return list(zip(messages, translations, strict=True))


def _strings(content: bytes, order: str, count: int, offset: int, name: str) -> list[bytes]:
    """The strings of one of the two tables."""
    if offset + 8 * count > len(content):
        raise _damaged(name, f"its table of {count:,} strings ends outside of it")
    table: NDArray[np.int64] = np.frombuffer(content, f"{order}u4", 2 * count, offset).astype(np.int64).reshape(-1, 2)
    lengths, starts = table.T
    ends = starts + lengths
    # Strings do not overlap; if they did, a small file could hold terabytes of them.
    if count and (ends.max() >= len(content) or lengths.sum() > len(content)):
        raise _damaged(name, "a string ends outside of it")
    found = [content[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    if any(content[end] for end in ends.tolist()):
        raise _damaged(name, "a string does not end in a zero byte")
    return found


def _damaged(name: str, what: str) -> UserError:
    return UserError(f"{name} must be a whole catalog; it is damaged or cut short: {what}. Get it again.")
