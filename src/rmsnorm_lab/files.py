"""Files of results: written whole or not at all, with errors that name the file and what to do."""

import argparse
import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from rmsnorm_lab.errors import UserError


def named(text: str) -> Path:
    """A path of the command line (argparse's ``type``). An empty text is usually an unset shell variable."""
    if text in ("", "-"):
        raise argparse.ArgumentTypeError(
            f"must name a file or a folder; got {text!r}. Pass a name (./- for a file called -)."
        )
    return Path(text)


def bytes_of(stream: TextIO | None, name: str) -> BinaryIO:
    """Standard input or output as bytes. Python has no such stream where the shell has closed it (``<&-``)."""
    if stream is None:
        raise UserError(f"{name} must be open; it is closed. Pass a file or a pipe.")
    return stream.buffer


def check_output(flag: str, path: Path) -> None:
    """Refuse, before any work, a file that could not be written afterwards."""
    folder = Path(os.path.realpath(path)).parent
    if path.is_dir():
        raise UserError(f"{flag} must name a file; {str(path)!r} is a folder. Name a file in it.")
    if not folder.is_dir():
        raise UserError(f"{flag} must lie in a folder that exists; {str(folder)!r} does not. Make it first.")
    if not os.access(path if path.exists() and not path.is_file() else folder, os.W_OK):
        raise UserError(f"{flag} must lie in a folder that can be written; {str(folder)!r} cannot. Name another place.")


@contextlib.contextmanager
def errors_named(path: Path) -> Iterator[None]:
    """The system's errors as one sentence. torch.save hides a full disk in a RuntimeError, whose context it is."""
    try:
        yield
    except BrokenPipeError:  # the reader of a pipe went away
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise UserError(
            f"{path} must be writable, and is not: {cause.strerror}. "
            "Fix that or name another file, and run the same command again."
        ) from None


def write_whole(
    path: Path, content: bytes | Callable[[BinaryIO], object], rename: Callable[[Path], Path] | None = None
) -> None:
    """Write all of a file or nothing of it: the content goes to a file beside it, which then takes its place.

    A link stays, and the file that it points to is written. A device or a pipe is written into.

    Args:
        path: the file.
        content: its content, or a function that writes it.
        rename: takes the path of the finished content and returns the name that it gets instead of ``path``.
    """
    with errors_named(path):
        if path.exists() and not path.is_file():
            with path.open("wb") as file:
                _fill(file, content)
            return
        path = Path(os.path.realpath(path))
        beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with beside.open("wb") as file:
                _fill(file, content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, rename(beside) if rename else path)
        finally:
            beside.unlink(missing_ok=True)


def remove_unfinished(folder: Path, suffix: str) -> None:
    """Remove the unfinished files, ending in ``suffix``, of killed processes. No other process may write one there."""
    for path in folder.glob(f".*{suffix}.*.tmp"):
        path.unlink(missing_ok=True)


def append_whole(path: Path, content: bytes) -> None:
    """Add all of ``content`` to the end of a file, or nothing of it."""
    with errors_named(path), path.open("ab", buffering=0) as file:
        before = os.fstat(file.fileno())
        try:
            while content:
                content = content[file.write(content) or 0 :]
        except OSError:
            if stat.S_ISREG(before.st_mode):
                file.truncate(before.st_size)
            raise


def sha256_of(content: bytes | Path | Iterable[bytes]) -> str:
    """The SHA-256 of bytes, of their concatenation if there are several, or of a file, which is read in blocks."""
    if isinstance(content, bytes):
        content = (content,)
    digest = hashlib.sha256()
    for block in _blocks(content) if isinstance(content, Path) else content:
        digest.update(block)
    return digest.hexdigest()


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            yield block


def _fill(file: BinaryIO, content: bytes | Callable[[BinaryIO], object]) -> None:
    if callable(content):
        content(file)
    else:
        file.write(content)
