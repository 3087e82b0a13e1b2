"""Debian packages (``.deb``): an ``ar`` archive that holds a compressed ``tar``. Nothing is installed or unpacked."""

import gzip
import importlib
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.data.input_files import opened, unreadable

LARGEST_PACKAGE = 4 << 30
"""Bytes of an unpacked package. A hundred kilobytes of xz can hold this; only games with their films are larger."""
LARGEST_FILE = 64 << 20
"""Bytes of one catalog. The largest in Debian have 2 MB."""
_MAGIC, _HEADER = b"!<arch>\n", 60
_ERRORS = (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, gzip.BadGzipFile, ValueError)


def members(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the regular files in a package whose names are ``wanted``.

    Raises:
        UserError: it is no package, is damaged, is too large, or is compressed in a way that cannot be read here.
    """
    with opened(path) as file:
        compression = _to_data(file, path)
        limited = _Limited(_decompressed(file, compression, path), path)
        try:
            with tarfile.open(fileobj=limited, mode="r:") as tar:  # type: ignore[call-overload]
                while (member := tar.next()) is not None:
                    tar.members = []  # otherwise each name stays in memory
                    if member.isreg() and wanted(member.name):
                        if member.size > LARGEST_FILE:
                            raise _too_large(f"{path}, {member.name}", LARGEST_FILE)
                        content = tar.extractfile(member)
                        assert content is not None
                        yield member.name, content.read()
        except _ERRORS as error:
            raise UserError(f"{path} must be a whole Debian package; it is damaged: {error}. Get it again.") from None
        except OSError as error:
            raise unreadable(path, error) from None


def _to_data(file: IO[bytes], path: Path) -> str:
    """Move to the content of the member ``data.tar``; returns how it is compressed ("xz")."""
    size = path.stat().st_size
    if file.read(len(_MAGIC)) != _MAGIC:
        raise UserError(f"{path} must be a Debian package (an ar archive); it begins otherwise. Get it again.")
    while header := file.read(_HEADER):
        name, length = header[:16].decode("latin-1").strip().rstrip("/"), header[48:58].strip()
        if len(header) < _HEADER or header[58:] != b"`\n" or not length.isdigit():
            break
        if file.tell() + int(length) > size:
            raise UserError(f"{path} must be a whole Debian package; {name} is cut short. Get it again.")
        if name.startswith("data.tar"):
            return name.removeprefix("data.tar").removeprefix(".")
        file.seek(int(length) + int(length) % 2, io.SEEK_CUR)
    raise UserError(f"{path} must be a whole Debian package; it holds no data.tar. Get it again.")


def _decompressed(file: IO[bytes], compression: str, path: Path) -> Any:
    if compression == "":
        return file
    if compression == "xz":
        return lzma.open(file)
    if compression == "gz":
        return gzip.open(file)
    if compression != "zst":
        raise UserError(f"{path} must be packed with xz, zstd or gzip; it is with {compression!r}. Unpack it.")
    for module in ("compression.zstd", "backports.zstd"):
        try:
            return importlib.import_module(module).open(file)
        except ImportError:
            continue
    raise UserError(
        f"{path} is packed with zstd, which Python reads from version 3.14 on. Run `pip install backports.zstd`, or "
        f"unpack it (`dpkg-deb --extract {path.name} FOLDER`) and pass the folder."
    )


class _Limited:
    """What tarfile needs of a file, up to a limit: a small archive can hold an endless file or an endless header."""

    def __init__(self, file: Any, path: Path) -> None:
        self.file, self.path, self.tell = file, path, file.tell
        self._start = file.tell()

    def read(self, size: int) -> bytes:
        if size > LARGEST_FILE:
            raise _too_large(str(self.path), LARGEST_FILE)
        self._check(self.file.tell() + size)
        found: bytes = self.file.read(size)
        return found

    def seek(self, position: int) -> None:
        self._check(position)
        self.file.seek(position)

    def _check(self, position: int) -> None:
        if position - self._start > LARGEST_PACKAGE:
            raise _too_large(str(self.path), LARGEST_PACKAGE)


def _too_large(name: str, limit: int) -> UserError:
    return UserError(f"{name} must hold at most {limit >> 20:,} MiB; it holds more. Leave it out.")
