"""The page: what the template shows, as text, tables and figures."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from rmsnorm_lab.analysis import gradients, invariance
from rmsnorm_lab.analysis.invariance_tables import gradient_table, invariance_table
from rmsnorm_lab.analysis.normed_layer import Sizes
from rmsnorm_lab.experiments import norms, tasks
from rmsnorm_lab.experiments.paper import CAVEAT, PUBLISHED, Published
from rmsnorm_lab.experiments.record import Record
from rmsnorm_lab.experiments.summary import mixed_machines, quality_row, time_row
from rmsnorm_lab.plain import to_plain
from rmsnorm_lab.report import figures
from rmsnorm_lab.report.collect import Experiment, Line, collect
from rmsnorm_lab.report.experiment_tables import (
    heading,
    percent,
    quality_table,
    quality_text,
    states_table,
    time_table,
)
from rmsnorm_lab.table import Cell, count

TRIALS, SEED = 10, 0
"""For the measured Table 1."""


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
    sections = [
        _section(experiment, f"experiment-{place}", _apart(experiment, experiments))
        for place, experiment in enumerate(experiments, 1)
    ]
    return environment.get_template("page.html").render(
        newest=max(record.finished for record in records),
        count=len(records),
        sections=sections,
        glance=[_glance(experiment, section) for experiment, section in zip(experiments, sections, strict=True)],
        invariances=_invariances(),
        gradients=_gradients(),
        machines=_machines(records),
        mixed=mixed_machines(records),
    )


def _section(experiment: Experiment, anchor: str, apart: str) -> dict[str, Any]:
    paper = PUBLISHED.get(experiment.task, Published(""))
    source = experiment.setting.source
    trained = []
    for kernels in experiment.lines:
        main, name = experiment.main(kernels), f"{anchor}-{kernels}"
        shown = figures.curves(experiment, kernels, name)
        if sweep := _p_sweep(experiment, kernels):
            shown.append(figures.p_sweep(sweep, main, experiment.result.metrics[0], f"{name}-p"))
        trained.append(
            {
                "quality": quality_table(experiment, kernels, paper),
                "states": states_table(experiment, kernels),
                "notes": _notes(experiment, kernels),
                "figures": shown,
                "legend": figures.legend([line.norm for line in main]),
            }
        )
    return {
        "anchor": anchor,
        "task": experiment.task,
        "apart": apart,
        "what": tasks.TASKS.get(experiment.task, ""),
        "stand_in": source.stand_in,
        "source": experiment.source_name,
        "facts": _facts(experiment),
        "trained": trained,
        "times": [time_table(experiment, kernels, paper) for kernels in experiment.timings],
        "paper": paper.where,
        "unlike": " · not the paper's data" if paper.where and not (experiment.official or source.stand_in) else "",
        "caveat": "" if experiment.official else f"; {CAVEAT}",
    }


def _apart(experiment: Experiment, experiments: Sequence[Experiment]) -> str:
    """What a heading says after the task: the steps, and every setting in which the task's experiments differ."""
    if experiment.train is None:
        return "times alone"
    own = _leaves(experiment)
    others = [_leaves(each) for each in experiments if each.task == experiment.task and each.train is not None]
    differing = [name for name, value in own.items() if any(other.get(name) != value for other in others)]
    hidden = (
        "steps",
        "stand_in",
        "sha256",
        "details",
    )  # shown by a badge, or by the data's name
    shown = [
        f"{name.replace('_', ' ')} {own[name]}" for name in differing if name not in hidden and own[name] is not None
    ]
    if "sha256" in differing:
        shown.insert(0, f"{experiment.source_name} ({own['sha256'][:8]})")
    return ", ".join([f"{experiment.train.steps:,} steps", *shown])


def _leaves(experiment: Experiment) -> dict[str, Any]:
    setting = experiment.setting
    settings = {name: getattr(setting, name) for name in ("size", "device", "precision")}
    return {
        **settings,
        "processes": experiment.processes,
        **to_plain(setting.source),
        **setting.model,
        **(setting.data or {}),
        **experiment.training,
    }


def _glance(experiment: Experiment, section: dict[str, Any]) -> dict[str, Any]:
    """One line of the overview: the headline of LayerNorm and RMSNorm, and what RMSNorm saves in each setting."""
    metric, quality = "", dict.fromkeys(("layer", "rms", "prms"), Cell("–"))
    if experiment.lines:
        kernels = next(iter(experiment.lines))
        headline = experiment.result.metrics[0]
        metric = heading(headline)
        for line in experiment.main(kernels):
            if line.norm in quality:
                quality[line.norm] = Cell(quality_text(quality_row(line.norm, line.records), headline))
    cells = [(norms.label(norm), cell) for norm, cell in quality.items()]
    for kernels, label in _SAVED.items():
        timing = experiment.timings.get(kernels)
        timed = timing and "rms" in timing.identity.norms
        cells.append((label, percent(time_row("rms", timing).saved) if timing and timed else Cell("–")))
    return {"section": section, "metric": metric, "cells": cells, "headings": [label for label, _ in cells]}


_SAVED = {
    "unfused": "time RMSNorm saves, %: unfused",
    "rmsnorm": "this project's kernels",
    "best": "best LayerNorm",
}


def _facts(experiment: Experiment) -> list[tuple[str, str]]:
    setting, train = experiment.setting, experiment.train
    source = setting.source
    details = [f"{key} {_said(value)}" for key, value in source.details.items()]
    return [
        ("data", ", ".join([experiment.source_name, *details, f"sha256 {source.sha256[:12]}"])),
        ("setting", f"{setting.size} size, {setting.device}, {setting.precision}"),
        ("model", _settings({**setting.model, **(setting.data or {})})),
        ("training", _settings(experiment.training) if train else f"batch {experiment.batch}; nothing was trained"),
    ]


def _said(value: Any) -> str:
    """A value of a source's details: a number, a text, or several of them by name."""
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_said(each)}" for name, each in value.items()) + ")"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _settings(settings: dict[str, Any]) -> str:
    """'width 128, layers 3': all settings that are not off."""
    shown = {name: value for name, value in settings.items() if value is not None and value is not False}
    return ", ".join(
        f"{name.replace('_', ' ')}" + ("" if value is True else f" {value}") for name, value in shown.items()
    )


def _notes(experiment: Experiment, kernels: str) -> list[str]:
    """Notes to the table of one setting's runs."""
    main = experiment.main(kernels)
    rates: dict[float, list[str]] = {}
    for line in main:
        rates.setdefault(line.learning_rate, []).append(norms.label(line.norm))
    learned = "; ".join(f"{rate:g}" + ("" if len(rates) == 1 else f" ({', '.join(of)})") for rate, of in rates.items())
    notes = [f"learning rate {learned}"]
    if mean := experiment.setting.model.get("init_mean"):
        notes.append(
            f"weights drawn around {mean:g} instead of 0, as in the paper's Fig. 4, where LayerNorm creeps from 1.4 to "
            "3.8 BLEU and RMSNorm climbs from 3.0 to 16.8"
        )
    notes += [f"pRMSNorm of the first {100 * line.p:g} %" for line in main if line.p is not None]
    sources = {norms.label(line.norm): line.records[0].norm_source for line in main}
    notes += [f"{name} is {source}" for name, source in sources.items() if source is not None]
    form = experiment.result.metrics[0].form
    notes += [f"{name} would give {value:{form}}" for name, value in experiment.result.references.items()]
    others = [line for line in experiment.lines[kernels] if line not in main]
    swept = _p_sweep(experiment, kernels)
    if elsewhere := [line for line in others if line not in swept]:
        listed = [
            norms.label(line.norm)
            + ("" if line.p is None else f" of the first {100 * line.p:g} %")
            + f" at {line.learning_rate:g}"
            for line in elsewhere
        ]
        notes.append(f"also recorded, not shown: {', '.join(listed)}")
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
def _invariances() -> dict[str, Any]:
    measured = invariance.measure(Sizes(), TRIALS, SEED)
    agreeing, compared = invariance.agreement(measured)
    return {"table": invariance_table(TRIALS, measured), "agreeing": agreeing, "compared": compared}


@cache
def _gradients() -> dict[str, Any]:
    found = gradients.measure(Sizes(), SEED)
    return {
        "table": gradient_table(found),
        "figures": figures.gradients(found),
        "legend": figures.legend(list(found), dashed=False),
    }


def _machines(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Every machine and set of versions that records were made with: number of records, and their commits."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        machine = record.machine
        about = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
        commit = (machine.commit or "")[:12] + (" with changes" if machine.dirty else "")
        lines = [
            machine.cpu + (f"; {machine.gpu}" if machine.gpu else ""),
            f"{count(machine.torch_threads, 'thread')}, {machine.memory_gib} GiB, {machine.os}",
            f"Python {machine.python}, {about}",
        ]
        group = found.setdefault("\n".join(lines), {"lines": lines, "count": 0, "commits": set()})
        group["count"] += 1
        group["commits"] |= {commit} - {""}
    for group in found.values():
        if commits := sorted(group["commits"]):
            group["lines"].append(f"commit{'s' * (len(commits) > 1)} {', '.join(commits)}")
    return sorted(found.values(), key=lambda each: -each["count"])
