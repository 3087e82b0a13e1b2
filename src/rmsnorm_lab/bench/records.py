"""Results as they are kept: one JSON object a line and case, complete in itself, appended as soon as it is measured."""

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rmsnorm_lab.bench.cases import Case
from rmsnorm_lab.errors import UserError
from rmsnorm_lab.files import append_whole
from rmsnorm_lab.timing import paired_ratios, quartiles

SCHEMA = "rmsnorm-bench/1"


@dataclass(frozen=True)
class Result:
    """What one provider did: the operation it computed, its errors against the oracle and its time a call by round."""

    computes: str
    fresh: bool
    limit: bool
    errors: dict[str, float]
    times_ns: list[float]

    @property
    def quartiles_ns(self) -> tuple[float, float, float]:
        return quartiles(self.times_ns)

    @property
    def median_ns(self) -> float:
        return self.quartiles_ns[1]


@dataclass(frozen=True)
class Record:
    """One case: the results, and by name why the other providers do not serve it or were not timed.

    ``others`` is how many processors something else kept busy during the measurement (None: unknown).
    """

    case: Case
    time: str
    machine: dict[str, Any]
    others: float | None
    results: dict[str, Result]
    skipped: dict[str, str]
    wrong: dict[str, str]

    def ratio(self, of: str | None, to: str | None) -> float | None:
        """Median of the paired ratios of two providers' times; None if one was not timed."""
        if of not in self.results or to not in self.results:
            return None
        return statistics.median(paired_ratios(self.results[of].times_ns, self.results[to].times_ns))

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA, **asdict(self)}, ensure_ascii=False)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Record":
        fields = {name: value for name, value in data.items() if name != "schema"}
        fields["case"] = Case(**fields["case"])
        fields["results"] = {name: Result(**result) for name, result in fields["results"].items()}
        return cls(**fields)


def append(path: Path, record: Record) -> None:
    """One line: whatever stops the run, the file is whole."""
    append_whole(path, f"{record.to_json()}\n".encode())


def load(path: Path) -> list[Record]:
    """All records of a file, or UserError if it is none of ours, or of another schema."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read results from {path}: {error}") from error
    return [_parse(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _parse(path: Path, number: int, line: str) -> Record:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}, line {number}: must be a JSON object a line, as --json writes: {error}") from error
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise UserError(
            f"{path}, line {number}: results must be of schema {SCHEMA!r}; received {schema!r}. "
            "Measure again, or read the file with the version of rmsnorm that wrote it."
        )
    try:
        return Record.from_json(data)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}, line {number}: not a complete record of schema {SCHEMA!r}: {error}") from error


def latest(records: Iterable[Record]) -> dict[Case, Record]:
    """The last record of each case, in the order in which the cases first appear."""
    return {record.case: record for record in records}
