"""The records inside the page, as files to download without a script: ``data:`` links."""

import base64
import csv
import gzip
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from rmsnorm_lab.experiments.record import Record, RunRecord, TimingRecord
from rmsnorm_lab.experiments.store import line_of
from rmsnorm_lab.report.collect import Experiment


@dataclass(frozen=True)
class Download:
    """One file."""

    name: str
    what: str
    address: Markup
    size: int
    """Bytes of the file."""


def downloads(headings: Sequence[str], experiments: Sequence[Experiment], records: Sequence[Record]) -> list[Download]:
    """``headings``: of the experiments, as the page has them."""
    runs, times = [], []
    for heading, experiment in zip(headings, experiments, strict=True):
        for kernels, lines in experiment.lines.items():
            runs += [_run(heading, kernels, run) for line in lines for run in line.records]
        for kernels, timing in experiment.timings.items():
            times += _times(heading, kernels, timing)
    found = [
        _download(
            "runs.csv", "every run: settings that differ, and its figures on the test split", "text/csv", _csv(runs)
        ),
        _download(
            "times.csv",
            "milliseconds of a step with each norm, round by round, of the timings that are shown",
            "text/csv",
            _csv(times),
        ),
    ]
    whole = "".join(map(line_of, records)).encode(errors="backslashreplace")
    whole = gzip.compress(whole, mtime=0)  # the same records make the same page
    what = "all records as they are, with curves and settings: JSON Lines"
    return [*found, _download("records.jsonl.gz", what, "application/gzip", whole)]


def _run(heading: str, kernels: str, run: RunRecord) -> dict[str, Any]:
    identity, result = run.identity, run.result
    return {
        "experiment": heading,
        "task": run.task,
        "data": run.source_name,
        "stand_in": identity.source.stand_in,
        "kernels": kernels,
        "norm": identity.norm,
        "p": identity.p,
        "learning_rate": identity.train.learning_rate,
        "steps": identity.train.steps,
        "seed": identity.seed,
        "status": result.status,
        "parameters": result.parameters,
        "train_loss": next(iter(result.curve.train_loss[-1:]), None),
        **(result.quality or {}),
    }


def _times(heading: str, kernels: str, timing: TimingRecord) -> list[dict[str, Any]]:
    """A row for each round, with a column for each norm: times of one row were taken on the same batch."""
    columns = timing.result.milliseconds
    return [
        {"experiment": heading, "task": timing.task, "kernels": kernels, "round": place}
        | {norm: column[place] for norm, column in columns.items()}
        for place in range(timing.result.rounds)
    ]


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode(errors="backslashreplace")


def _download(name: str, what: str, kind: str, content: bytes) -> Download:
    address = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return Download(name, what, Markup(address), len(content))
