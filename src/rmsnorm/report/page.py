"""The page: what the template shows, put into words."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from rmsnorm.analysis import gradients, invariance
from rmsnorm.analysis.layers import Sizes
from rmsnorm.analysis.report import law, mark
from rmsnorm.experiments import hidden_states, tasks
from rmsnorm.experiments.compare import QualityRow, mixed_machines, quality_row, time_row
from rmsnorm.experiments.paper import HIDDEN_STATES, PAPER, Published
from rmsnorm.experiments.recipes.common import LABELS
from rmsnorm.experiments.runs import Record
from rmsnorm.experiments.table import SETTINGS
from rmsnorm.experiments.timing import Spread
from rmsnorm.report import figures
from rmsnorm.report.collect import Experiment, Line, collect

TRIALS, SEED = 10, 0
"""Of the measured Table 1."""


@dataclass(frozen=True)
class Cell:
    """One figure; beneath it its confidence interval, and the paper's."""

    text: str
    interval: str = ""
    paper: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells under headings, the first column being the normaliser."""

    title: str
    headings: list[str]
    rows: list[tuple[str, list[Cell]]]
    note: str = ""


def render(records: Sequence[Record]) -> str:
    """The whole page. The same records make the same page on one version of the software."""
    experiments = collect(records)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = [_section(experiment, f"experiment-{place}") for place, experiment in enumerate(experiments, 1)]
    return environment.get_template("page.html").render(
        newest=max(record["finished"] for record in records),
        count=len(records),
        sections=sections,
        glance=[_glance(experiment, section) for experiment, section in zip(experiments, sections, strict=True)],
        table1=_table1(),
        gradients=_gradients(),
        machines=_machines(records),
        mixed=mixed_machines(records),
        LABELS=LABELS,
    )


def _section(experiment: Experiment, anchor: str) -> dict[str, Any]:
    paper = PAPER.get(experiment.task, Published(""))
    source = experiment.common["source"]
    trained = []
    for kernels in experiment.lines:
        main, name = experiment.main(kernels), f"{anchor}-{kernels}"
        shown = figures.curves(experiment, kernels, name)
        if sweep := _p_sweep(experiment, kernels):
            shown.append(figures.p_sweep(sweep, main, experiment.result["metrics"][0], f"{name}-p"))
        trained.append(
            {
                "quality": _quality_table(experiment, kernels, paper),
                "states": _states_table(experiment, kernels),
                "notes": _notes(experiment, kernels),
                "figures": shown,
                "legend": figures.legend([line.norm for line in main]),
            }
        )
    return {
        "anchor": anchor,
        "task": experiment.task,
        "steps": f"{experiment.train['steps']:,} steps" if experiment.train else "times alone",
        "what": tasks.TASKS.get(experiment.task, ""),
        "stand_in": source["stand_in"],
        "source": source["name"],
        "facts": _facts(experiment),
        "trained": trained,
        "times": [_time_table(experiment, kernels, paper) for kernels in experiment.timings],
        "paper": paper.where,
    }


def _quality_table(experiment: Experiment, kernels: str, paper: Published) -> Table:
    metrics = experiment.result["metrics"]
    rows = []
    for line in experiment.main(kernels):
        row, published = quality_row(line.norm, line.records), paper.quality.get(line.norm, {})
        cells = [
            Cell(_quality(row, metric), paper=f"{published[metric['key']]:g}" if metric["key"] in published else "")
            for metric in metrics
        ]
        rows.append((LABELS[line.norm], cells))
    seeds = sorted({len(line.records) for line in experiment.main(kernels)})
    over = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    title = f"Quality on the test split, {_KERNELS[kernels]}: mean ± standard deviation over seeds ({over} each)"
    return Table(title, [_heading(metric) for metric in metrics], rows)


_KERNELS = {
    "unfused": "norms in framework operators",
    "rmsnorm": "this project's kernels",
    "best": "torch's LayerNorm, this project's kernels for the others",
}


def _states_table(experiment: Experiment, kernels: str) -> Table | None:
    """The paper's Table 5, where the network has a decoder to look into."""
    rows = []
    for line in experiment.main(kernels):
        found = quality_row(line.norm, line.records).metrics
        cells = []
        for part, keys in hidden_states.KEYS.items():
            published = HIDDEN_STATES.get(line.norm, {}).get(part, ("",) * len(keys))
            for key, said in zip(keys, published, strict=True):
                measured = _signed(found[key].mean, 2) if key in found else "–"
                cells.append(Cell(measured, paper=_signed(said, 2) if isinstance(said, float) else ""))
        if any(key in found for key in hidden_states.KEYS["mean"]):
            rows.append((LABELS[line.norm], cells))
    words = ["all" if position == "all" else f"word {position}" for position in hidden_states.POSITIONS]
    headings = [f"{part}, {word}" for part in hidden_states.KEYS for word in words]
    title = "The decoder's hidden-to-hidden activations by the target's word, validation set (the paper's Table 5)"
    return Table(title, headings, rows) if rows else None


def _heading(metric: dict[str, Any]) -> str:
    return f"{metric['label']}\N{NO-BREAK SPACE}{'↑' if metric['higher_is_better'] else '↓'}".replace("\n", " ")


def _quality(row: QualityRow, metric: dict[str, Any]) -> str:
    """'2.345 ± 0.012'; never a mere number where a run diverged."""
    diverged = f"{row.diverged} of {row.runs} diverged"
    if metric["key"] not in row.metrics:
        return "diverged" if row.runs == 1 else diverged
    quality, form = row.metrics[metric["key"]], metric["form"]
    spread = "" if quality.sd is None else f" ± {quality.sd:{form}}"
    return f"{quality.mean:{form}}{spread}" + (f", {diverged}" if row.diverged else "")


def _time_table(experiment: Experiment, kernels: str, paper: Published) -> Table:
    record = experiment.timings[kernels]
    saved = paper.saved if kernels == "unfused" else {}
    rows = []
    for norm in record["identity"]["norms"]:
        row = time_row(norm, record)
        cells = [
            Cell(f"{row.milliseconds:.1f}"),
            _percent(row.saved, saved.get(norm, "")),
            _percent(row.norm_share),
            Cell("–" if row.profiled_share is None else f"{100 * row.profiled_share:.1f}"),
            Cell(f"{row.peak_memory / 2**20:.1f}"),
        ]
        rows.append((LABELS[norm], cells))
    headings = ["ms a step", "% of LayerNorm's saved", "% in norms, by ablation", "by profiler", "peak MiB"]
    machine, rounds = record["machine"], len(record["result"]["milliseconds"]["layer"])
    processor = machine["cpu"] if record["identity"]["device"] == "cpu" else machine["gpu"] or machine["cpu"]
    note = (
        f"{rounds} rounds of one step each in turn, {record['finished'][:16].replace('T', ' ')} UTC; "
        f"{processor}, {machine['torch_threads']} threads, torch {machine['versions']['torch']}"
    )
    return Table(SETTINGS[kernels][0].upper() + SETTINGS[kernels][1:], headings, rows, note)


def _percent(spread: Spread | None, paper: str = "") -> Cell:
    if spread is None:
        return Cell("–", paper=paper)
    low, high = spread.interval
    return Cell(_signed(100 * spread.median), f"[{_signed(100 * low)}, {_signed(100 * high)}]", paper)


def _signed(value: float, digits: int = 1) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")  # + 0.0: no "−0.0"


def _glance(experiment: Experiment, section: dict[str, Any]) -> dict[str, Any]:
    """One line of the overview: the headline of LayerNorm and RMSNorm, and what RMSNorm saves in each setting."""
    metric, quality = "", dict.fromkeys(("layer", "rms", "prms"), Cell("–"))
    if experiment.lines:
        kernels = next(iter(experiment.lines))
        headline = experiment.result["metrics"][0]
        metric = _heading(headline)
        for line in experiment.main(kernels):
            if line.norm in quality:
                quality[line.norm] = Cell(_quality(quality_row(line.norm, line.records), headline))
    cells = [(LABELS[norm], cell) for norm, cell in quality.items()]
    for kernels, label in _SAVED.items():
        timing = experiment.timings.get(kernels)
        timed = timing and "rms" in timing["identity"]["norms"]
        cells.append((label, _percent(time_row("rms", timing).saved) if timing and timed else Cell("–")))
    return {"section": section, "metric": metric, "cells": cells, "headings": [label for label, _ in cells]}


_SAVED = {
    "unfused": "RMSNorm saves, %: unfused",
    "rmsnorm": "saves: this project's kernels",
    "best": "saves: best LayerNorm",
}


def _facts(experiment: Experiment) -> list[tuple[str, str]]:
    common = experiment.common
    source, train = common["source"], experiment.train
    details = [f"{key} {_said(value)}" for key, value in source["details"].items()]
    return [
        ("data", ", ".join([source["name"], *details, f"sha256 {source['sha256'][:12]}"])),
        ("setting", f"{common['size']} size, {common['device']}, {common['precision']}"),
        ("model", _settings({**common["model"], **(common["data"] or {})})),
        ("training", _settings(train) if train else f"batch {experiment.batch}; nothing was trained"),
    ]


def _said(value: Any) -> str:
    """A value of a source's details: a count, words, or several of them by name."""
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_said(each)}" for name, each in value.items()) + ")"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _settings(settings: dict[str, Any]) -> str:
    """'width 128, layers 3': but for what is off."""
    shown = {name: value for name, value in settings.items() if value is not None and value is not False}
    return ", ".join(
        f"{name.replace('_', ' ')}" + ("" if value is True else f" {value}") for name, value in shown.items()
    )


def _notes(experiment: Experiment, kernels: str) -> list[str]:
    """What has to be known to read the table of one setting's runs."""
    main = experiment.main(kernels)
    rates: dict[float, list[str]] = {}
    for line in main:
        rates.setdefault(line.learning_rate, []).append(LABELS[line.norm])
    learned = "; ".join(f"{rate:g}" + ("" if len(rates) == 1 else f" ({', '.join(of)})") for rate, of in rates.items())
    notes = [f"learning rate {learned}"]
    if mean := experiment.common["model"].get("init_mean"):
        notes.append(
            f"weights drawn around {mean:g} instead of 0, as in the paper's Fig. 4, where LayerNorm creeps from 1.4 to "
            "3.8 BLEU and RMSNorm climbs from 3.0 to 16.8"
        )
    notes += [f"pRMSNorm of the first {100 * line.p:g} %" for line in main if line.p is not None]
    form = experiment.result["metrics"][0]["form"]
    notes += [f"{name} would give {value:{form}}" for name, value in experiment.result["references"].items()]
    others = [line for line in experiment.lines[kernels] if line not in main]
    swept = _p_sweep(experiment, kernels)
    if elsewhere := [line for line in others if line not in swept]:
        listed = sorted({f"{LABELS[line.norm]} at {line.learning_rate:g}" for line in elsewhere})
        notes.append(f"recorded too, with other settings, and not shown: {', '.join(listed)}")
    if mixed := mixed_machines(experiment.records):
        notes.append(f"the records differ in {'; '.join(mixed)}")
    return notes


def _p_sweep(experiment: Experiment, kernels: str) -> list[Line]:
    """pRMSNorm's runs that differ from those of the table in p alone; empty for fewer than three values of p."""
    main = next((line for line in experiment.main(kernels) if line.norm == "prms"), None)
    if main is None:
        return []
    same = [
        line for line in experiment.lines[kernels] if (line.norm, line.learning_rate) == ("prms", main.learning_rate)
    ]
    return same if len(same) >= 3 else []


@cache
def _table1() -> dict[str, Any]:
    measured = invariance.measure(Sizes(), TRIALS, SEED)
    said = [cell for row in measured.values() for cell in row.values() if cell.paper is not None]
    return {
        "headings": list(invariance.TRANSFORMATIONS),
        "rows": [
            (LABELS[norm], norm in invariance.PAPER, [(mark(cell), cell) for cell in row.values()])
            for norm, row in measured.items()
        ],
        "agreeing": sum(cell.agrees for cell in said),
        "said": len(said),
        "trials": TRIALS,
    }


@cache
def _gradients() -> dict[str, Any]:
    found = gradients.measure(Sizes(), SEED)
    rows = [
        (LABELS[norm], [law(each.inputs), law(each.weights), f"{each.along_weights:.0e}"])
        for norm, each in found.items()
    ]
    return {"rows": rows, "figures": figures.gradients(found), "legend": figures.legend(list(found), dashed=False)}


def _machines(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Every machine and set of versions that the records were made on, with how many."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        machine = record["machine"]
        about = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        commit = machine["commit"][:12] if machine["commit"] else None
        lines = [
            machine["cpu"] + (f"; {machine['gpu']}" if machine["gpu"] else ""),
            f"{machine['torch_threads']} threads, {machine['memory_gib']} GiB, {machine['os']}",
            f"Python {machine['python']}, {about}",
        ]
        if commit:
            lines.append(f"commit {commit}" + (" with changes" if machine["dirty"] else ""))
        key = "\n".join(lines)
        found.setdefault(key, {"lines": lines, "count": 0})["count"] += 1
    return sorted(found.values(), key=lambda each: -each["count"])
