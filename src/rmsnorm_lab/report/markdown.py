"""The tables of all experiments as Markdown, for documents: quality, and the times of all settings in one table."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rmsnorm.timing import FEWEST
from rmsnorm_lab.experiments import norms
from rmsnorm_lab.experiments.paper import PUBLISHED, Published
from rmsnorm_lab.experiments.record import Record
from rmsnorm_lab.experiments.summary import TimeRow, time_row
from rmsnorm_lab.report.collect import Experiment, collect, processor
from rmsnorm_lab.report.experiment_tables import difference_table, p_table, quality_table, share, states_table
from rmsnorm_lab.report.headings import apart
from rmsnorm_lab.table import Cell, Row, Table, count

_HEADINGS = {"unfused": "in operators", "rmsnorm": "both in kernels", "best": "against torch's LayerNorm"}
"""Setting -> its columns' heading."""


def markdown(records: Sequence[Record]) -> str:
    """The tables of each experiment; their titles begin with the experiment's heading."""
    experiments = collect(records)
    for experiment in experiments:
        experiment.apart = apart(experiment, experiments)
    return "\n\n".join(table.markdown() for experiment in experiments for table in _tables(experiment))


def _tables(experiment: Experiment) -> Iterator[Table]:
    paper = PUBLISHED.get(experiment.task, Published(""))
    for kernels in experiment.lines:
        swept = experiment.p_sweep(kernels)
        found = [
            quality_table(experiment, kernels, paper),
            difference_table(experiment, kernels),
            p_table(swept, experiment.result.metrics) if swept else None,
            states_table(experiment, kernels),
        ]
        yield from (replace(table, title=f"{_title(experiment)}. {table.title}") for table in found if table)
    if experiment.timings:
        yield _times(experiment, paper)


def _title(experiment: Experiment) -> str:
    title, source = experiment.heading, experiment.source_name
    return title if source in title else f"{title}, {'stand-in: ' * experiment.setting.source.stand_in}{source}"


def _times(experiment: Experiment, paper: Published) -> Table:
    seconds = paper.seconds if experiment.setting.size == "paper" else {}
    timings = experiment.timings
    rows = []
    for norm in dict.fromkeys(norm for each in timings.values() for norm in each.identity.norms):
        cells: list[Cell | str] = [seconds.get(norm, "")] if seconds else []
        cells += [paper.saved.get(norm, "")] if paper.saved else []
        for record in timings.values():
            found = time_row(norm, record) if norm in record.identity.norms else None
            cells += [f"{found.milliseconds:.0f}" if found else "", _saved(found)]
        rows.append(Row(norms.label(norm), cells))
    headings = ["norm"]
    headings += [f"paper: s of {paper.seconds_of.partition(', ')[0]}"] if seconds else []
    headings += ["paper: saved, %"] if paper.saved else []
    for kernels in timings:
        interval = " [95 % interval]" if timings[kernels].result.rounds >= FEWEST else ""
        headings += [f"{_HEADINGS[kernels]}: ms a step", f"saved, %{interval}"]
    first = next(iter(timings.values()))
    made = ", ".join(str(each.result.rounds) for each in timings.values())
    note = (
        f"Rounds: {made}; {processor(first)}, {count(first.machine.torch_threads, 'thread')}, torch "
        f"{first.machine.versions['torch']}, {first.finished[:10]}."
    )
    return Table(headings, rows, _title(experiment), note)


def _saved(row: TimeRow | None) -> Cell | str:
    if row is None or row.saved is None:
        return ""
    return share(row.saved) if row.saved.interval else share(row.saved).text
