"""The records of finished runs: one file of one JSON line each, so that ``cat runs/*.jsonl`` is JSON Lines.

A record is written under another name and renamed, so a file is there whole or not at all, however the process ended.
Its name ends in a hash of what identifies the run; a record that was damaged or edited afterwards is an error, never
skipped.
"""

import hashlib
import json
import math
from collections.abc import Collection
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rmsnorm.errors import UserError
from rmsnorm.files import write_whole

SCHEMA = 2

Record = dict[str, Any]

_FIELDS: dict[str, type] = {
    "schema": int,
    "task": str,
    "kind": str,
    "identity": dict,
    "machine": dict,
    "finished": str,
    "result": dict,
}


def file_name(task: str, kind: str, identity: dict[str, Any]) -> str:
    """Where the run lies: readable first, then the hash that decides."""
    digest = hashlib.sha256(_dumps([SCHEMA, task, kind, identity]).encode()).hexdigest()[:12]
    parts = [task, kind]
    if kind == "run":
        parts = [task, identity["norm"], f"seed{identity['seed']}"]
    return f"{'-'.join(parts)}-{digest}.jsonl"


def load(folder: Path) -> list[Record]:
    """Every record in a folder, each checked, in the order of the files' names; nothing is written."""
    if not folder.is_dir():
        raise UserError(f"records lie in a folder; {str(folder)!r} is none. Pass the --out of rmsnorm compare.")
    return [_read(path) for path in sorted(folder.glob("*.jsonl"))]


class RunStore:
    """The folder of records. Reading it checks every record in it, but for those in ``replaced``."""

    def __init__(self, folder: Path, replaced: Collection[str] = ()) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            paths = sorted(path for path in folder.glob("*.jsonl") if path.name not in replaced)
            self._records = {path.name: _read(path) for path in paths}
            write_whole(folder / ".writable", b"")
            (folder / ".writable").unlink()
        except OSError as error:
            raise UserError(
                f"--out must be a folder that can be written; {str(folder)!r} cannot: {error.strerror}."
            ) from None

    def get(self, task: str, kind: str, identity: dict[str, Any]) -> Record | None:
        return self._records.get(file_name(task, kind, identity))

    def put(
        self,
        task: str,
        kind: str,
        identity: dict[str, Any],
        *,
        machine: dict[str, Any],
        result: dict[str, Any],
    ) -> Record:
        record = {
            "schema": SCHEMA,
            "task": task,
            "kind": kind,
            "identity": identity,
            "machine": machine,
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "result": result,
        }
        line = _dumps(record)
        name = file_name(task, kind, identity)
        write_whole(self.folder / name, line.encode() + b"\n")
        self._records[name] = json.loads(line)  # as it will be read back, tuples and all
        return self._records[name]


def _dumps(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _read(path: Path) -> Record:
    def damaged(line: int, what: str) -> UserError:
        return UserError(
            f"{path}, line {line}: a record must be one whole JSON line as this program wrote it; {what}. "
            "Delete the file, or give --overwrite where it belongs to this comparison, and the run is done again."
        )

    content = path.read_bytes()
    first, _, rest = content.partition(b"\n")
    try:
        record = json.loads(first, parse_constant=_refuse)
    except ValueError as error:
        raise damaged(1, f"it cannot be read: {error}") from None
    if rest or not content.endswith(b"\n"):
        raise damaged(2 if rest else 1, "something follows it" if rest else "its end is missing")
    if not isinstance(record, dict):
        raise damaged(1, "it is not an object")
    if record.get("schema") != SCHEMA:
        raise damaged(1, f"it has schema {record.get('schema')!r} and this version reads {SCHEMA}")
    for field, kind in _FIELDS.items():
        if not isinstance(record.get(field), kind):
            raise damaged(1, f"{field!r} is missing or is not of type {kind.__name__}")
    try:
        problem = _result_problem(record["kind"], record["result"])
        named = file_name(record["task"], record["kind"], record["identity"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise damaged(1, f"a field is missing or has another type ({error!r})") from None
    if problem:
        raise damaged(1, problem)
    if named != path.name:
        raise damaged(1, "its settings are not those that its file name stands for")
    return record


def _result_problem(kind: str, result: dict[str, Any]) -> str | None:
    """What is wrong with a result, if anything."""
    if kind == "timing":
        times = result["milliseconds"].values()
        lengths = {len(rounds) for rounds in times}
        if len(lengths) != 1 or 0 in lengths or not all(_positive(ms) for rounds in times for ms in rounds):
            return "its times are not equally many positive numbers"
        if not result["milliseconds"].keys() == result["profiled_share"].keys() == result["peak_memory"].keys():
            return "its times, shares and memory are of different normalisers"
    elif kind == "run":
        curve, quality = result["curve"], result["quality"]
        columns = [curve["step"], curve["seconds"], curve["train_loss"], *curve["valid"].values()]
        if len({len(column) for column in columns}) != 1:
            return "the columns of its curve differ in length"
        if result["status"] not in ("finished", "diverged"):
            return f"its status is {result['status']!r}"
        if (result["status"] == "finished") != (quality is not None and all(map(_number, quality.values()))):
            return f"its status is {result['status']!r} and its quality is {quality!r}"
        if not {metric["key"] for metric in result["metrics"]} <= curve["valid"].keys() or not result["metrics"]:
            return "its metrics are not those of its curve"
    else:
        return f"its kind is {kind!r}"
    return None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")  # Python's reader would take NaN and Infinity


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _positive(value: Any) -> bool:
    return _number(value) and bool(value > 0)
