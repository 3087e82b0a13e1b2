"""The records of finished runs: one file of one JSON line each, so that ``cat runs/*.jsonl`` is JSON Lines.

A file is there whole or not at all, however the process ended. Its name ends in a hash of what identifies the run, and
a digest covers all of its content. A record that was damaged or edited is an error, never used and never skipped.
"""

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.files import remove_unfinished, write_whole

SCHEMA = 3

Record = dict[str, Any]

ASIDE = "aside"
"""The folder, within that of the records, of files that were set aside."""
_NAMED = 5
"""How many damaged records are named at most."""
_OURS = re.compile(r".+-[0-9a-f]{12}(-[a-z_]+\d+)?\.jsonl")
"""What file_name gives: a file that is called so is a record, even if nothing of it can be read."""


def file_name(task: str, kind: str, identity: dict[str, Any]) -> str:
    """The run's file: readable first, then the hash that decides, then the processes where there were several.

    These are not in the hash: what begins with the same name is the same run by other processes.
    """
    by = identity.get("processes")
    settings = {name: value for name, value in identity.items() if name != "processes"}
    parts = [task, kind]
    if kind == "run":
        parts = [task, identity["norm"], f"seed{identity['seed']}"]
    return "-".join([*parts, _hash([task, kind, settings])[:12], *([by] if by else [])]) + ".jsonl"


def load(folder: Path) -> list[Record]:
    """Every record in a folder, each checked, in the order of the files' names; nothing is written."""
    records, wrong = _read_all(folder)
    if wrong:
        messages = list(wrong.values())
        more = [f"and {len(wrong) - _NAMED} more"] if len(wrong) > _NAMED else []
        raise UserError("\n".join(messages[:_NAMED] + more))
    return records


def set_aside(folder: Path) -> list[Path]:
    """Move every file that is no record of this version into a folder of its own; returns where they are now."""
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
    """The records, and what is wrong with the files that are none."""
    if not folder.is_dir():
        raise UserError(f"records lie in a folder; {str(folder)!r} is none. Pass the --out of rmsnorm compare.")
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

    def get(self, task: str, kind: str, identity: dict[str, Any]) -> Record | None:
        path = self.folder / file_name(task, kind, identity)
        return read(path) if path.exists() else None

    def put(
        self,
        task: str,
        kind: str,
        identity: dict[str, Any],
        *,
        source_name: str,
        machine: dict[str, Any],
        result: dict[str, Any],
    ) -> Record:
        record = {
            "schema": SCHEMA,
            "task": task,
            "kind": kind,
            "identity": identity,
            "source_name": source_name,
            "machine": machine,
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "result": result,
        }
        record["digest"] = _hash(record)
        path = self.folder / file_name(task, kind, identity)
        write_whole(path, _dumps(record).encode() + b"\n")
        return read(path)  # as it is read ever after, tuples and all


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[RunStore]:
    """The folder of records, made where it is missing, for one process to write to: a second one is refused.

    The lock is the system's. It ends with the process, by a kill too, and the file ``.lock`` that stays is none.
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
    """What lies where the folder, or one that it is to lie in, would be made."""
    there = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), None)
    if there is None or os.path.isdir(there):
        return None
    if os.path.islink(there) and not os.path.exists(there):
        return f"{str(there)!r} is a link to {os.readlink(there)!r}, which does not exist"
    return f"{str(there)!r} is a {'file' if os.path.isfile(there) else 'device or a pipe'}"


def _hash(value: Any) -> str:
    return hashlib.sha256(_dumps(value).encode()).hexdigest()


def _dumps(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def read(path: Path) -> Record:
    """The record in a file.

    Raises:
        UserError: it is none of this version, or damaged; names the file and says what is wrong.
    """

    def wrong(line: int, what: str, remedy: str) -> UserError:
        return UserError(
            f"{path}, line {line}: a record must be one whole JSON line as this version wrote it; {what}. "
            f"{remedy}, or move all such files away: rmsnorm report --set-aside {shlex.quote(str(path.parent))}"
        )

    def damaged(line: int, what: str) -> UserError:
        return wrong(line, what, "Delete the file, and the run is done again")

    def foreign(what: str) -> UserError:
        return wrong(1, f"this is no record of rmsnorm: {what}", "Move the file elsewhere")

    content = path.read_bytes()
    first, _, rest = content.partition(b"\n")
    try:
        record = json.loads(first)
    except (ValueError, RecursionError) as error:
        unread = f"it cannot be read: {error}"
        raise (damaged(1, unread) if _OURS.fullmatch(path.name) else foreign(unread)) from None
    if not isinstance(record, dict):
        raise foreign("it is not an object")
    if "schema" not in record:
        raise foreign("it has no schema")
    if rest or not content.endswith(b"\n"):
        raise damaged(2 if rest else 1, "something follows it" if rest else "its end is missing")
    if record["schema"] != SCHEMA:
        raise damaged(1, f"it has schema {record['schema']!r} and this version reads {SCHEMA}")
    try:
        whole = record.get("digest") == _hash({name: value for name, value in record.items() if name != "digest"})
        named = whole and path.name == file_name(record["task"], record["kind"], record["identity"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(1, f"it is none of this program's ({error!r})") from None
    if not whole:
        raise damaged(1, "its digest is not that of its content: it was edited")
    if not named:
        raise damaged(1, "its settings are not those that its file's name says")
    return record
