"""Reading the user's files: only regular files are opened, and errors name the file."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from rmsnorm_lab.errors import UserError

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def unreadable(path: Path | str, error: OSError) -> UserError:
    """The system's error as a UserError that names the file."""
    return UserError(f"{path} must be readable; it is not: {error.strerror}. Make it readable, or name another.")


def opened(path: Path) -> BinaryIO:
    """The file, opened for reading. Only regular ones: a FIFO would wait for a writer, and a device may never end."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = _KINDS.get(stat.S_IFMT(mode), "something else")
            raise UserError(f"{path} must be a regular file; it is {kind}. Save the content as a file first.")
        return path.open("rb")
    except OSError as error:
        raise unreadable(path, error) from None


def read_bytes(path: Path) -> bytes:
    """The whole content of a file."""
    with opened(path) as file:
        try:
            return file.read()
        except OSError as error:
            raise unreadable(path, error) from None


def names_in(folder: Path) -> list[str]:
    """The sorted names of everything in a folder."""
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise unreadable(folder, error) from None


def walk(folder: Path) -> list[str]:
    """The sorted names of all files under ``folder``, relative to it. Hidden files and folders are left out.

    Links are followed, because corpora are often made of links.

    Raises:
        UserError: a folder cannot be read, a link leads nowhere or back to a folder that holds it, or an entry is
            neither a file nor a folder. A skipped entry would be missing from the data without notice.
    """
    return sorted(_under(folder, "", frozenset()))


def _under(folder: Path, prefix: str, above: frozenset[tuple[int, int]]) -> list[str]:
    found: list[str] = []
    try:
        own = folder.stat()
    except OSError as error:
        raise unreadable(folder, error) from None
    if (own.st_dev, own.st_ino) in above:
        raise UserError(f"{folder} leads back to a folder that holds it. Take the link out.")
    for name in names_in(folder):
        if name.startswith("."):
            continue
        path = folder / name
        try:
            mode = path.stat().st_mode
        except OSError as error:
            raise unreadable(path, error) from None
        if stat.S_ISDIR(mode):
            found += _under(path, f"{prefix}{name}/", above | {(own.st_dev, own.st_ino)})
        elif stat.S_ISREG(mode):
            found.append(prefix + name)
        else:
            opened(path)  # says what it is
    return found
