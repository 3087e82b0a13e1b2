"""The lines of a text file, checked; and hashes of files."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.data.input_files import opened, unreadable
from rmsnorm_lab.files import sha256_of

BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"


def decode(content: bytes, path: Path, line: int = 1) -> str:
    """``content`` as text. It is UTF-8 and begins with line ``line`` of ``path``.

    Raises:
        UserError: it is not UTF-8, or has a zero byte; names the file and the line.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line += content.count(b"\n", 0, error.start)
        raise UserError(
            f"{path}, line {line:,}: text must be UTF-8; this is not: {error.reason}. "
            "Convert the file (iconv -f ENCODING -t UTF-8) or take it out."
        ) from None
    if (place := text.find("\0")) >= 0:
        line += text.count("\n", 0, place)
        raise UserError(f"{path}, line {line:,}: text must hold no zero bytes; this does. Is it a text file?")
    return text.removeprefix(BOM) if line == 1 else text


def read_lines(path: Path, hashed: Any = None) -> Iterator[str]:
    """The lines of a UTF-8 file one by one, without white space around them. An empty file is an error.

    Only a line feed ends a line, because Unicode's line separators occur within sentences. The last line may lack it.

    Arguments:
        hashed: one of hashlib's hashes; is updated with the bytes of the file as they are read.
    """
    number = 0
    with opened(path) as file:
        try:
            for content in file:
                number += 1
                if hashed is not None:
                    hashed.update(content)
                yield decode(content, path, number).strip()
        except OSError as error:
            raise unreadable(path, error) from None
    if not number:
        raise UserError(f"{path} must hold text; it is empty. Get the file again.")


def begin(hashed: Any, name: str, size: int) -> None:
    """Update the hash with what comes before a file's content in :func:`digest`."""
    hashed.update(_heading(name, size))


def digest(parts: Iterable[tuple[str, bytes]]) -> str:
    """One SHA-256 of the (name, content) pairs in the given order."""
    return sha256_of(part for name, content in parts for part in (_heading(name, len(content)), content))


def _heading(name: str, size: int) -> bytes:
    return f"{name!r} {size} ".encode()
