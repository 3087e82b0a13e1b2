"""What the records were made on: one entry for each processor, with everything in which its records differ."""

from collections.abc import Sequence
from dataclasses import dataclass

from rmsnorm_lab.experiments.record import Machine, Record
from rmsnorm_lab.table import count


@dataclass(frozen=True)
class Entry:
    """Machines that have the same processor and number of threads."""

    records: int
    lines: list[str]


def entries(records: Sequence[Record]) -> list[Entry]:
    """The one with most records first."""
    found: dict[tuple[str, str | None, int], list[Machine]] = {}
    for record in records:
        made = record.machine
        found.setdefault((made.cpu, made.gpu, made.torch_threads), []).append(made)
    return [_entry(of) for of in sorted(found.values(), key=len, reverse=True)]


def _entry(machines: Sequence[Machine]) -> Entry:
    first = machines[0]
    memory = sorted({each.memory_gib for each in machines if each.memory_gib is not None})
    versions = {
        name: _values([each.versions.get(name) for each in machines]) for each in machines for name in each.versions
    }
    commits = sorted({each.commit[:12] + (" with changes" if each.dirty else "") for each in machines if each.commit})
    ranges = [f"{memory[0]:g}{f' to {memory[-1]:g}' if len(memory) > 1 else ''} GiB"] if memory else []
    lines = [
        first.cpu + (f"; {first.gpu}" if first.gpu else ""),
        ", ".join([count(first.torch_threads, "thread"), *ranges, _values([each.os for each in machines])]),
        ", ".join(
            [
                f"Python {_values([each.python for each in machines])}",
                *(f"{name} {of}" for name, of in versions.items()),
            ]
        ),
    ]
    if commits:
        lines.append(f"commit{'s' * (len(commits) > 1)} {', '.join(commits)}")
    return Entry(len(machines), lines)


def _values(values: Sequence[str | None]) -> str:
    """'2.12 or 2.13': every value once."""
    return " or ".join(sorted({value or "none" for value in values}))
