"""Records as tables: one for each case, or one for each group of cases that differ in shape only."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rmsnorm_lab.bench.cases import Case
from rmsnorm_lab.bench.model_tables import COMPARED, chain_table, model_ratios, model_table
from rmsnorm_lab.bench.oracle import SUMMED
from rmsnorm_lab.bench.records import Machine, Record, Result
from rmsnorm_lab.table import Row, Table, count

# What a provider is compared with: new memory with new memory, and warm memory with warm memory.
OURS = {True: "rmsnorm", False: "rmsnorm-out"}
LIMIT = {True: "clone", False: "copy"}
RECURRENT_LIMIT = "products"
DISTURBED = 0.1  # processors


@dataclass(frozen=True)
class Figures:
    """What a table shows of one provider in one case."""

    name: str
    result: Result
    rate: float
    """In the unit of ``Case.work``."""
    over_limit: float | None
    ours_over: float | None


def figures(record: Record) -> Iterator[Figures]:
    for name, result in record.results.items():
        limit = RECURRENT_LIMIT if record.case.recurrent else LIMIT[result.fresh]
        yield Figures(
            name=name,
            result=result,
            rate=record.case.work[0] / result.median_ns,
            over_limit=record.ratio(name, limit) if name != limit else None,
            ours_over=record.ratio(OURS[result.fresh], name) if name != OURS[result.fresh] else None,
        )


def case_table(record: Record, earlier: Record | None = None) -> Table:
    """All providers on one case; with ``earlier``, its times beside these."""
    case = record.case
    compared = case.kind in ("model", "chain")
    ratios = ["time ÷\nthe other's", "the\nother"] if compared else ["time ÷\nlimit", "rmsnorm ÷\nthis"]
    headings = ["provider", "time", "quartiles", case.work[1], *ratios, "error"]
    to_other = model_ratios(record)
    rows = []
    for each in figures(record):
        first, median, third = each.result.quartiles_ns
        cells = [
            duration(median),
            f"{duration(first)} – {duration(third)}",
            f"{each.rate:.3g}",
            *(
                [to_other.get(each.name, "–"), COMPARED.get(each.name, "–")]
                if compared
                else [_ratio(each.over_limit), _ratio(each.ours_over)]
            ),
            _errors(each.result.errors, case),
        ]
        if earlier:
            then = earlier.results.get(each.name)
            cells += [duration(then.median_ns), _ratio(median / then.median_ns)] if then else ["–", "–"]
        rows.append(
            Row(
                _name(each, case),
                cells,
                style="dim" if each.result.limit else "bold" if each.name in OURS.values() else "",
            )
        )
    notes = [f"not timed: {name}: {why}" for name, why in record.wrong.items()]
    if record.others and record.others > DISTURBED:
        notes.append(f"disturbed: other processes kept {record.others:.1f} processors busy during the measurement")
    return Table(
        headings=headings + (["earlier", "now ÷\nearlier"] if earlier else []),
        rows=rows,
        title=str(case) if compared else f"{case} ({_bytes(case.bytes)})",
        note="\n".join(notes),
    )


LEGEND = (
    "time: the median of a call. rmsnorm ÷ this: this project's time over the provider's. limit: a copy of the same "
    "bytes, into new memory if the output is new; for recurrent networks, their matrix products. "
    "Ratios: the median of the ratios within each round. "
    "error: the largest of y and dx, in epsilons of the dtype; Σ: of gradients that are sums over rows, relative; "
    "codes: in steps; recurrent networks, models, chains and rotary embeddings: of results and all gradients, relative."
)


def markdown(records: Iterable[Record]) -> str:
    """One table for each group of cases that differ in shape only: median times, and in brackets rmsnorm's ÷ it."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.case.group, []).append(record)
    models, chains = (
        [record for members in groups.values() for record in members if record.case.kind == kind]
        for kind in ("model", "chain")
    )
    parts = [
        _group_table(heading, members).markdown()
        for heading, members in groups.items()
        if members[0].case.kind not in ("model", "chain")
    ]
    if models:
        parts.append(model_table(models, duration).markdown())
    if chains:
        parts.append(chain_table(chains, duration).markdown())
    machines = dict.fromkeys(about(record.machine) for members in groups.values() for record in members)
    return "\n\n".join([*parts, *machines])


def _group_table(heading: str, records: list[Record]) -> Table:
    names = list(dict.fromkeys(name for record in records for name in record.results))
    rows = []
    for record in records:
        by_name = {each.name: each for each in figures(record)}
        cells = []
        for name in names:
            each = by_name.get(name)
            ours = f" ({_ratio(each.ours_over)})" if each and each.ours_over else ""
            cells.append(duration(each.result.median_ns) + ours if each else "–")
        rows.append(Row(record.case.shape.replace("x", " × "), cells))
    shapes = "steps × batch × features × hidden" if records[0].case.recurrent else "rows × n"
    return Table([shapes, *names], rows, title=heading)


def about(machine: Machine) -> str:
    """A record's machine, versions and commit in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    commit = f", commit {machine.commit[:12]}{' with changes' if machine.dirty else ''}" if machine.commit else ""
    isa = f", {machine.isa}" if machine.isa else ""
    settings = "".join(f"; {name}={value}" for name, value in machine.environment.items())
    gpu = f"{machine.gpu}, CUDA {machine.cuda}; " if machine.gpu else ""
    processor = f"{gpu}{machine.cpu}, {count(machine.threads, 'usable thread')}{isa}"
    return f"{processor}; {machine.os}; Python {machine.python}, {versions}{commit}{settings}"


def duration(nanoseconds: float) -> str:
    """Three significant digits in the unit that suits: 905 ns, 1.90 µs, 37.4 ms."""
    value, unit = nanoseconds, "ns"
    for larger in ("µs", "ms", "s"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f} {unit}"


def _name(each: Figures, case: Case) -> str:
    if each.result.limit:
        return f"{each.name} (limit)"
    return each.name if each.result.computes == case.operation else f"{each.name} ({each.result.computes})"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _errors(errors: dict[str, float], case: Case) -> str:
    if not errors:
        return "–"
    if case.kind != "norm":
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
