"""Records in words: a rich table for each case, Markdown tables for a document."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from rmsnorm_lab.bench.cases import Case, count
from rmsnorm_lab.bench.oracle import SUMMED
from rmsnorm_lab.bench.records import Record, Result

# What a provider is compared with: like with like, new memory with new memory and warm with warm.
OURS = {True: "rmsnorm", False: "rmsnorm-out"}
LIMIT = {True: "clone", False: "copy"}
RECURRENT_LIMIT = "products"
DISTURBED = 0.1  # processors


@dataclass(frozen=True)
class Row:
    """What a table says of one provider in one case."""

    name: str
    result: Result
    rate: float
    """In the unit of ``Case.work``."""
    over_limit: float | None
    ours_over: float | None


def rows(record: Record) -> Iterator[Row]:
    for name, result in record.results.items():
        limit = RECURRENT_LIMIT if record.case.recurrent else LIMIT[result.fresh]
        yield Row(
            name=name,
            result=result,
            rate=record.case.work[0] / result.median_ns,
            over_limit=record.ratio(name, limit) if name != limit else None,
            ours_over=record.ratio(OURS[result.fresh], name) if name != OURS[result.fresh] else None,
        )


def case_table(record: Record, earlier: Record | None = None) -> Table:
    """All providers on one case; with ``earlier``, its times beside these."""
    table = Table(title=f"{record.case} ({_bytes(record.case.bytes)})", title_justify="left", title_style="bold")
    table.add_column("provider", no_wrap=True)
    for heading in ("time", "quartiles", record.case.work[1], "× limit", "rmsnorm ÷ it", "error"):
        table.add_column(heading, justify="right", no_wrap=True)
    if earlier:
        table.add_column("earlier", justify="right", no_wrap=True)
        table.add_column("now ÷ earlier", justify="right", no_wrap=True)
    for row in rows(record):
        first, median, third = row.result.quartiles_ns
        cells = [
            _name(row, record.case),
            duration(median),
            f"{duration(first)} – {duration(third)}",
            f"{row.rate:.3g}",
            _ratio(row.over_limit),
            _ratio(row.ours_over),
            _errors(row.result.errors, record.case),
        ]
        if earlier:
            then = earlier.results.get(row.name)
            cells += [duration(then.median_ns), _ratio(median / then.median_ns)] if then else ["–", "–"]
        table.add_row(*cells, style="dim" if row.result.limit else "bold" if row.name in OURS.values() else "")
    remarks = [f"not timed: {name}: {escape(why)}" for name, why in record.wrong.items()]
    if record.others and record.others > DISTURBED:
        remarks.append(f"disturbed: other processes kept {record.others:.1f} processors busy meanwhile")
    if remarks:
        table.caption, table.caption_style, table.caption_justify = "\n".join(remarks), "red", "left"
    return table


LEGEND = (
    "time: median a call. × limit: over the copy of the same bytes (into new memory for a new output), of recurrent "
    "networks over their matrix products. "
    "rmsnorm ÷ it: this project's time over the provider's; both are medians of ratios within a round. "
    "error: largest of y and dx in epsilons of the dtype; Σ: of gradients summed over rows, relative; codes in steps; "
    "of recurrent networks: y and all gradients, relative."
)


def markdown(records: Iterable[Record]) -> str:
    """One table a group of cases that differ in shape only: median times, in brackets rmsnorm ÷ it."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.case.group, []).append(record)
    parts = [_markdown_group(heading, members) for heading, members in groups.items()]
    machines = dict.fromkeys(about(record.machine) for members in groups.values() for record in members)
    return "\n\n".join([*parts, *machines])


def _markdown_group(heading: str, records: list[Record]) -> str:
    names = list(dict.fromkeys(name for record in records for name in record.results))
    lines = [
        f"**{heading}**",
        "",
        _line(["steps × batch × features × hidden" if records[0].case.recurrent else "rows × n", *names]),
        _line(["---:"] * (len(names) + 1)),
    ]
    for record in records:
        by_name = {row.name: row for row in rows(record)}
        cells = [record.case.shape.replace("x", " × ")]
        for name in names:
            row = by_name.get(name)
            ours = f" ({_ratio(row.ours_over)})" if row and row.ours_over else ""
            cells.append(duration(row.result.median_ns) + ours if row else "–")
        lines.append(_line(cells))
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def about(machine: dict[str, Any]) -> str:
    """A record's machine, versions and commit in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    commit = f", commit {machine['commit'][:12]}{' with changes' * machine['dirty']}" if machine["commit"] else ""
    isa = f", {machine['isa']}" if machine["isa"] else ""
    settings = "".join(f"; {name}={value}" for name, value in machine["environment"].items())
    gpu = f"{machine['gpu']}, CUDA {machine['cuda']}; " if "gpu" in machine else ""
    processor = f"{gpu}{machine['cpu']}, {count(machine['threads'], 'thread')}{isa}"
    return f"{processor}; {machine['os']}; Python {machine['python']}, {versions}{commit}{settings}"


def duration(nanoseconds: float) -> str:
    """Three significant digits in the unit that suits: 905 ns, 1.90 µs, 37.4 ms."""
    value, unit = nanoseconds, "ns"
    for larger in ("µs", "ms", "s"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f} {unit}"


def _name(row: Row, case: Case) -> str:
    if row.result.limit:
        return f"{row.name} (limit)"
    return row.name if row.result.computes == case.operation else f"{row.name} [dim]({row.result.computes})[/]"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _errors(errors: dict[str, float], case: Case) -> str:
    if not errors:
        return "–"
    if case.recurrent:
        return f"{max(errors.values()):.0e}"
    parts = [f"{max(error for name, error in errors.items() if name not in (*SUMMED, 'q')):.1f} ε"]
    if "q" in errors:
        parts.append(f"{errors['q']:.2f} steps")
    if sums := [error for name, error in errors.items() if name in SUMMED]:
        parts.append(f"Σ {max(sums):.0e}")
    return ", ".join(parts)


def _bytes(number: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1024
    return f"{number:.3g} GiB"
