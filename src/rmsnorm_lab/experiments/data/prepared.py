"""Prepared data: arrays in files that tasks map into memory. They are made once; later starts read them in seconds.

Prepared data are kept beside the data in ``.rmsnorm-cache``, or in the user's cache folder if that cannot be written.
The folder's name contains a hash of the files' names, sizes and times, the settings, and the version of the format.
Each array is a file of raw numbers. Processes that need the same prepared data, such as those of torchrun, wait for the
one that makes them, and share the pages of the files.
"""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.data.input_files import unreadable
from rmsnorm_lab.experiments.data.loading import Loading
from rmsnorm_lab.experiments.data.ragged import Ragged
from rmsnorm_lab.files import sha256_of

FOLDER = ".rmsnorm-cache"
FORMAT = 2
"""Must be raised when the same files and settings give other arrays than before."""
_INDEX = "index.json"
_BLOCK = 1 << 24


@dataclass(frozen=True)
class Prepared:
    """Arrays, mapped read-only, and JSON values that belong to them."""

    arrays: dict[str, NDArray[Any]]
    info: dict[str, Any]

    def ragged(self, name: str) -> Ragged:
        """Rows of unequal lengths, from the arrays ``name`` and ``name.lengths``."""
        return Ragged.of(self.arrays[name], self.arrays[f"{name}.lengths"])


class Writer:
    """Writes prepared arrays piece by piece, so that no array is in memory as a whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index: dict[str, dict[str, Any]] = {}

    def append(self, name: str, values: NDArray[Any]) -> None:
        """Append to an array along its first dimension."""
        dtype, width = values.dtype.str, list(values.shape[1:])
        entry = self._index.setdefault(name, {"dtype": dtype, "rows": 0, "width": width, "crc32": 0})
        assert (entry["dtype"], entry["width"]) == (dtype, width)
        content = np.ascontiguousarray(values).tobytes()
        entry["rows"] += len(values)
        entry["crc32"] = zlib.crc32(content, entry["crc32"])
        self._write(name, content)

    def ragged(self, name: str, values: NDArray[Any], lengths: NDArray[Any]) -> None:
        """Append rows of unequal lengths, for :meth:`Prepared.ragged`."""
        self.append(name, values)
        self.append(f"{name}.lengths", lengths.astype(np.int32))

    def finish(self, info: dict[str, Any]) -> None:
        """Write the index. Without it the arrays are not read."""
        content = json.dumps({"arrays": self._index, "info": info}).encode()
        self._write(_INDEX, sha256_of(content).encode() + b"\n" + content)

    def _write(self, name: str, content: bytes) -> None:
        path = self.folder / name
        try:
            with path.open("ab") as file:
                file.write(content)
        except OSError as error:  # a full disk; the system's error does not name the file
            raise OSError(error.errno, error.strerror, str(path)) from None


Build = Callable[[Writer, Loading], dict[str, Any]]
"""Writes the arrays and returns the JSON values that belong to them. Raises UserError if the data are wrong."""


def prepare(
    kind: str, data: Path, files: Callable[[], Iterable[Path]], settings: dict[str, Any], build: Build
) -> Prepared:
    """What ``build`` makes of ``files`` with ``settings``. It is made at the first call and read at later ones.

    Arguments:
        kind: the task, for the folder's name.
        data: the path that the user gave. The arrays are kept in it, or beside it if it is a file.
        files: all files that ``build`` reads, as an iterator: a list of CNN's 387,420 paths would take 200 MB.
        settings: everything else that the arrays depend on, as JSON values.
    """
    key = _key(files(), settings)
    name = f"{kind}-{key}"
    loading = Loading(data.resolve().name)
    for place in _places(data):
        if (found := _read(place / name, loading)) is not None:
            return found
    for place in _places(data):
        try:
            place.mkdir(parents=True, exist_ok=True)
            with _lock(place / f".{name}.lock", loading):
                if (found := _read(place / name)) is None:
                    found = _make(place / name, build, loading, lambda: _key(files(), settings) == key)
                    loading.say(f"{loading.name}: prepared in {loading.seconds:.0f} s, kept in {place / name}")
                return found
        except OSError as error:
            loading.say(f"{place} cannot keep the prepared data of {data}: {error.strerror}")
    loading.say(f"the prepared data of {data} are not kept; they will be prepared again at the next start")
    return temporary(build, loading)


def temporary(build: Build, loading: Loading | None = None) -> Prepared:
    """What ``build`` makes, for this process only. The files are unlinked at once and vanish with the process."""
    try:
        with tempfile.TemporaryDirectory(prefix="rmsnorm-") as folder:
            return _make(Path(folder) / "made", build, loading or Loading("stand-in"), lambda: True)
    except OSError as error:
        raise UserError(
            f"there must be room for the prepared data; {error.filename or tempfile.gettempdir()}: {error.strerror}. "
            "Free some, or set TMPDIR to a folder that has it."
        ) from None


def _places(data: Path) -> list[Path]:
    own = (data if data.is_dir() else data.parent) / FOLDER
    user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return [own, Path(user) / "rmsnorm"] if os.path.isabs(user) else [own]  # without a home "~" is not expanded


def _key(files: Iterable[Path], settings: dict[str, Any]) -> str:
    """A hash of names, sizes, times and settings. ctime also changes when a tool restores mtime after a change."""
    found = [json.dumps([FORMAT, settings], sort_keys=True)]
    for path in files:
        try:
            status = path.stat()
        except OSError as error:
            raise unreadable(path, error) from None
        name = f"{path.parent.name}/{path.name}"
        found.append(f"{name!r} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} ")
    return sha256_of(map(str.encode, found))[:16]


@contextlib.contextmanager
def _lock(path: Path, loading: Loading) -> Iterator[None]:
    """Let one process in at a time. The lock ends with the process, also if that is killed; the empty file stays."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if os.environ.get("LOCAL_RANK", "0") == "0":
                loading.say(f"{loading.name}: another process is preparing it; this one waits")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(folder: Path, build: Build, loading: Loading, unchanged: Callable[[], bool]) -> Prepared:
    part = folder.with_name(f".{folder.name}.part")  # a killed process may have left one
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir()
        writer = Writer(part)
        with loading:
            writer.finish(build(writer, loading))
        if not unchanged():
            raise UserError(f"the files of {loading.name!r} were changed while they were read. Run the command again.")
        shutil.rmtree(folder, ignore_errors=True)  # it is damaged
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    found = _read(folder)
    if found is None:
        raise UserError(f"{folder} must be readable as it was written; it is not. Is the disk sound?")
    return found


def _read(folder: Path, loading: Loading | None = None) -> Prepared | None:
    """The arrays in ``folder``; None if they are missing or damaged. Damage is reported to ``loading``."""
    try:
        digest, content = (folder / _INDEX).read_bytes().split(b"\n", 1)
    except OSError:
        return None
    except ValueError:
        digest, content = b"", b""
    if sha256_of(content).encode() != digest:
        return _damaged(folder / _INDEX, loading)
    index = json.loads(content)
    arrays = {}
    for name, entry in index["arrays"].items():
        path, dtype, shape = folder / name, np.dtype(entry["dtype"]), (entry["rows"], *entry["width"])
        assert dtype.kind in "iuf", dtype
        try:
            if _crc32(path) != entry["crc32"]:
                return _damaged(path, loading)
            empty = 0 in shape  # an empty file cannot be mapped
            arrays[name] = np.zeros(shape, dtype) if empty else np.asarray(np.memmap(path, dtype, "r", shape=shape))
        except OSError:
            return _damaged(path, loading)
    return Prepared(arrays, index["info"])


def _damaged(path: Path, loading: Loading | None) -> Prepared | None:
    if loading is not None:
        loading.say(f"{path} is damaged; {loading.name} is prepared again")
    return None


def _crc32(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found = zlib.crc32(block, found)
    return found
