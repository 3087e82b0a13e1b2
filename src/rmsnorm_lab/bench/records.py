"""The records of the benchmark: one JSON object per line and case, appended as soon as the case is measured."""

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rmsnorm.timing import paired_ratios, quartiles
from rmsnorm_lab import machine
from rmsnorm_lab.bench.cases import Case
from rmsnorm_lab.errors import UserError
from rmsnorm_lab.files import append_whole
from rmsnorm_lab.plain import ADDED, from_plain, to_plain

SCHEMA = "rmsnorm-bench/1"


@dataclass(frozen=True)
class Machine(machine.Machine):
    """What a case was measured on, and the CUDA device if it was one."""

    gpu: str | None = field(default=None, metadata=ADDED)
    multiprocessors: int | None = field(default=None, metadata=ADDED)
    gpu_memory_gib: float | None = field(default=None, metadata=ADDED)
    l2_mib: float | None = field(default=None, metadata=ADDED)
    cuda: str | None = field(default=None, metadata=ADDED)


@dataclass(frozen=True)
class Result:
    """What one provider did."""

    computes: str
    """The operation: a stand-in computes another one than the case's."""
    fresh: bool
    """Whether each call returns new memory."""
    limit: bool
    errors: dict[str, float]
    """Of each output, against the oracle."""
    times_ns: list[float]
    """A call's time in each round."""

    @property
    def quartiles_ns(self) -> tuple[float, float, float]:
        return quartiles(self.times_ns)

    @property
    def median_ns(self) -> float:
        return self.quartiles_ns[1]


@dataclass(frozen=True)
class Record:
    """One case and what each provider did."""

    case: Case
    time: str
    machine: Machine
    others: float | None
    """How many processors anything else kept busy during the measurement. None: unknown."""
    results: dict[str, Result]
    skipped: dict[str, str]
    """Providers that do not serve the case, and why."""
    wrong: dict[str, str]
    """Providers that failed or returned wrong numbers, and how."""

    def ratio(self, of: str | None, to: str | None) -> float | None:
        """Median of the paired ratios of two providers' times; None if one was not timed."""
        if of not in self.results or to not in self.results:
            return None
        return statistics.median(paired_ratios(self.results[of].times_ns, self.results[to].times_ns))

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA, **to_plain(self)}, ensure_ascii=False)


def append(path: Path, record: Record) -> None:
    """One line: whatever stops the run, the file is whole."""
    append_whole(path, f"{record.to_json()}\n".encode())


def load(path: Path) -> list[Record]:
    """All records of a file, or UserError if it is not a file of this schema."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path} must be a file that can be read: {error.strerror}. Name another file.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} must be JSON lines in UTF-8: {error}. Name a file that --json wrote.") from None
    return [parse(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def parse(path: Path, number: int, line: str) -> Record:
    """The record in one line of a file, or UserError."""
    try:
        data = json.loads(line)
    except ValueError as error:
        raise UserError(
            f"{path}, line {number}: must be a JSON object: {error}. Name a file that --json wrote."
        ) from None
    schema = data.pop("schema", None) if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise UserError(
            f"{path}, line {number}: schema must be {SCHEMA!r}; got {schema!r}. "
            "Measure again, or read the file with the version of rmsnorm that wrote it."
        )
    try:
        return from_plain(Record, data)
    except ValueError as error:
        raise UserError(
            f"{path}, line {number}: must be a complete record of schema {SCHEMA!r}; {error}. Delete the line."
        ) from None


def latest(records: Iterable[Record]) -> dict[Case, Record]:
    """The last record of each case, in the order in which the cases first appear."""
    return {record.case: record for record in records}
