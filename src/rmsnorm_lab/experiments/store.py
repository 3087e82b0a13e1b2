"""The records of finished runs: one file of one JSON line each, so that ``cat runs/*.jsonl`` is JSON Lines.

A file exists completely or not at all, however the process ended. Its name ends in a hash of what identifies the run,
and a digest covers all of its content. A damaged or edited record is an error; it is never used and never skipped.
"""

import contextlib
import fcntl
import itertools
import json
import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, overload

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.record import SCHEMA, Record, RunIdentity, RunRecord, TimingIdentity, TimingRecord
from rmsnorm_lab.files import remove_unfinished, sha256_of, write_whole
from rmsnorm_lab.plain import from_plain, to_plain

_KINDS: dict[str, type[Record]] = {"run": RunRecord, "timing": TimingRecord}

ASIDE = "aside"
"""The folder, within that of the records, of files that were set aside."""
_NAMED = 5
"""The most damaged records that a message names."""
_OURS = re.compile(r".+-[0-9a-f]{12}(-[a-z_]+\d+)?\.jsonl")
"""What file_name gives: a file that is called so is a record, even if nothing of it can be read."""


def file_name(task: str, identity: RunIdentity | TimingIdentity) -> str:
    """The run's file: readable first, then the hash that decides, then the processes where there were several.

    These are not in the hash: names that begin alike are of one run by other processes.
    """
    settings, processes = to_plain(identity), []
    parts = [task, identity.kind]
    if isinstance(identity, RunIdentity):
        parts = [task, identity.norm, f"seed{identity.seed}"]
        processes = list(filter(None, [settings.pop("processes", None)]))
    return "-".join([*parts, _hash([task, identity.kind, settings])[:12], *processes]) + ".jsonl"


def load(folder: Path) -> list[Record]:
    """Every record in a folder, each checked, in the order of the files' names; nothing is written."""
    records, wrong = _read_all(folder)
    if wrong:
        messages = list(wrong.values())
        more = [f"and {len(wrong) - _NAMED} more"] if len(wrong) > _NAMED else []
        raise UserError("\n".join(messages[:_NAMED] + more))
    return records


def set_aside(folder: Path) -> list[Path]:
    """Move every file that is not a record of this version into a folder of its own; returns where they are now."""
    moved = []
    for path in _read_all(folder)[1]:
        (folder / ASIDE).mkdir(exist_ok=True)
        moved.append(path.rename(_free(folder / ASIDE / path.name)))
    return moved


def _free(path: Path) -> Path:
    """The path, or where a file has that name already the first of name.1.jsonl, name.2.jsonl, ... that is free."""
    others = (path.with_name(f"{path.stem}.{number}{path.suffix}") for number in itertools.count(1))
    return next(each for each in itertools.chain([path], others) if not os.path.lexists(each))


def _read_all(folder: Path) -> tuple[list[Record], dict[Path, str]]:
    """The records, and what is wrong with the other files."""
    if not folder.is_dir():
        raise UserError(
            f"RUNS must be a folder of records; {str(folder)!r} is not a folder. Pass the --out of rmsnorm compare."
        )
    records, wrong = [], {}
    for path in sorted(folder.glob("*.jsonl")):
        try:
            records.append(read(path))
        except UserError as error:
            wrong[path] = str(error)
    return records, wrong


class RunStore:
    """Records by what identifies them; of a folder that exists. Those of other runs are never read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @overload
    def get(self, task: str, identity: RunIdentity) -> RunRecord | None: ...
    @overload
    def get(self, task: str, identity: TimingIdentity) -> TimingRecord | None: ...
    def get(self, task: str, identity: RunIdentity | TimingIdentity) -> Record | None:
        path = self.folder / file_name(task, identity)
        return read(path) if path.exists() else None

    def put(self, record: Record) -> Path:
        """Write a record; returns where it is."""
        path = self.folder / file_name(record.task, record.identity)
        write_whole(path, line_of(record).encode())
        return path


def as_json(record: Record) -> dict[str, Any]:
    """The record as its file holds it."""
    content = {"schema": SCHEMA, "kind": record.identity.kind, **to_plain(record)}
    return {**content, "digest": _hash(content)}


def line_of(record: Record) -> str:
    """The whole content of a record's file."""
    return _dumps(as_json(record)) + "\n"


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[RunStore]:
    """The folder of records, made where it is missing, for one process to write to: a second one is refused.

    The operating system holds the lock and releases it when the process ends, even if it is killed. The file ``.lock``
    stays, and locks nothing by itself.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((folder / ".lock").open("a+b", buffering=0))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise UserError(
                    f"--out must be a folder that no other rmsnorm writes to; process {lock.read().decode()} writes to "
                    f"{str(folder)!r}. Wait until it has ended, or pass another folder."
                ) from None
            lock.truncate(0)
            lock.write(str(os.getpid()).encode())
            with tempfile.TemporaryFile(dir=folder):  # a folder in which .lock exists may have been closed since
                pass
            for suffix in (".jsonl", ".json", ".pt", ".png"):
                remove_unfinished(folder, suffix)
                remove_unfinished(folder / "checkpoints", suffix)
        except OSError as error:
            raise UserError(
                "--out must be a folder that can be written and locked; "
                f"{_in_the_way(folder) or f'{str(folder)!r} cannot: {error.strerror}'}. Pass another one."
            ) from None
        yield RunStore(folder)


def _in_the_way(folder: Path) -> str | None:
    """The file that is in the way of the folder or of one of its parents."""
    there = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), None)
    if there is None or os.path.isdir(there):
        return None
    if os.path.islink(there) and not os.path.exists(there):
        return f"{str(there)!r} is a link to {os.readlink(there)!r}, which does not exist"
    return f"{str(there)!r} is a {'file' if os.path.isfile(there) else 'device or a pipe'}"


def _hash(value: Any) -> str:
    return sha256_of(_dumps(value).encode())


def _dumps(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def read(path: Path) -> Record:
    """The record in a file.

    Raises:
        UserError: it is not a record of this version, or it is damaged. The message names the file and the fault.
    """

    def wrong(line: int, what: str, remedy: str) -> UserError:
        return UserError(
            f"{path}, line {line}: a record must be one whole JSON line as this version wrote it; {what}. "
            f"{remedy}, or move all such files away: rmsnorm report --set-aside {shlex.quote(str(path.parent))}"
        )

    def damaged(line: int, what: str) -> UserError:
        return wrong(line, what, "Delete the file, and the run is done again")

    def foreign(what: str) -> UserError:
        return wrong(1, f"this is not a record of rmsnorm: {what}", "Move the file elsewhere")

    try:
        content = path.read_bytes()
    except OSError as error:  # a link to nothing, a folder
        raise foreign(f"it cannot be read ({error.strerror})") from None
    first, _, rest = content.partition(b"\n")
    try:
        found = json.loads(first)
    except (ValueError, RecursionError) as error:
        unread = f"it cannot be read: {error}"
        raise (damaged(1, unread) if _OURS.fullmatch(path.name) else foreign(unread)) from None
    if not isinstance(found, dict):
        raise foreign("it is not an object")
    if "schema" not in found:
        raise foreign("it has no schema")
    if rest or not content.endswith(b"\n"):
        raise damaged(2 if rest else 1, "something follows it" if rest else "its end is missing")
    if found["schema"] != SCHEMA:
        raise damaged(1, f"it has schema {found['schema']!r} and this version reads {SCHEMA}")
    try:
        whole = found.get("digest") == _hash({name: value for name, value in found.items() if name != "digest"})
    except (ValueError, RecursionError) as error:  # NaN is not JSON
        raise damaged(1, f"this program did not write it ({error})") from None
    if not whole:
        raise damaged(1, "its digest is not that of its content: it was edited")
    try:
        fields = {name: value for name, value in found.items() if name not in ("schema", "kind", "digest")}
        record = from_plain(_KINDS[found["kind"]], fields)
    except (ValueError, KeyError, TypeError, UserError) as error:
        raise damaged(1, f"this program did not write it ({error})") from None
    if path.name != file_name(record.task, record.identity):
        raise damaged(1, "its settings do not match its file's name")
    return record
