"""A text file as its lines, checked; and the hash that says what was read."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from rmsnorm.errors import UserError


def read_bytes(path: Path) -> bytes:
    """The file's content, or the error that names it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} must be readable; it is not: {error.strerror}.") from None


def decode(content: bytes, path: Path) -> str:
    """The text of a UTF-8 file, or the error that names the file and the line."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line:,}: text must be UTF-8; this is not: {error.reason}. "
            "Convert the file (iconv -f ENCODING -t UTF-8) or get it anew."
        ) from None
    if (place := text.find("\0")) >= 0:
        line = text.count("\n", 0, place) + 1
        raise UserError(f"{path}, line {line:,}: text must hold no zero bytes; this does. Get the file anew.")
    return text


def lines_of(content: bytes, path: Path) -> list[str]:
    """The lines of a UTF-8 file. Only a line feed ends one: the Unicode line separators occur within sentences."""
    text = decode(content, path)
    if not text.endswith("\n"):
        line = text.count("\n") + 1
        raise UserError(
            f"{path}, line {line:,}: the last line must end in a line feed; the file is cut short. Get it anew."
        )
    return [line.strip() for line in text[:-1].split("\n")]


def read_lines(path: Path) -> list[str]:
    """:func:`lines_of` of what is in the file."""
    return lines_of(read_bytes(path), path)


def digest(parts: Iterable[tuple[str, bytes]]) -> str:
    """One SHA-256 of (name, content) in the order given."""
    found = hashlib.sha256()
    for name, content in parts:
        found.update(f"{name!r} {len(content)} ".encode())
        found.update(content)
    return found.hexdigest()
