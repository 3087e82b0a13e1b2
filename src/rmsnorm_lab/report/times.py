"""The times of all experiments as one Markdown table each, for documents: the paper's figures beside those measured."""

from collections.abc import Sequence

from rmsnorm.timing import FEWEST
from rmsnorm_lab.experiments import norms
from rmsnorm_lab.experiments.paper import PUBLISHED, Published
from rmsnorm_lab.experiments.record import Record
from rmsnorm_lab.experiments.summary import TimeRow, time_row
from rmsnorm_lab.report.collect import Experiment, collect, processor
from rmsnorm_lab.report.experiment_tables import share
from rmsnorm_lab.report.headings import apart
from rmsnorm_lab.table import Cell, Row, Table, count

_HEADINGS = {"unfused": "in operators", "rmsnorm": "both in kernels", "best": "against torch's LayerNorm"}
"""Setting -> its columns' heading."""


def markdown(records: Sequence[Record]) -> str:
    """A table for each experiment that was timed."""
    experiments = [each for each in collect(records) if each.timings]
    for experiment in experiments:
        experiment.apart = apart(experiment, experiments)
    return "\n\n".join(_table(experiment).markdown() for experiment in experiments)


def _table(experiment: Experiment) -> Table:
    paper = PUBLISHED.get(experiment.task, Published(""))
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
    title = experiment.heading
    if experiment.source_name not in title:
        title += f", {'stand-in: ' if experiment.setting.source.stand_in else ''}{experiment.source_name}"
    return Table(headings, rows, title, note)


def _saved(row: TimeRow | None) -> Cell | str:
    if row is None or row.saved is None:
        return ""
    return share(row.saved) if row.saved.interval else share(row.saved).text
