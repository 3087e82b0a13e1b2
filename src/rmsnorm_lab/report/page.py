"""The page: what the template shows, as text, tables and figures."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from rmsnorm_lab.analysis import gradients, invariance
from rmsnorm_lab.analysis.invariance_tables import gradient_table, invariance_table
from rmsnorm_lab.analysis.normed_layer import Sizes
from rmsnorm_lab.experiments import tasks
from rmsnorm_lab.experiments.data.official import is_drawn
from rmsnorm_lab.experiments.paper import CAVEAT, PUBLISHED, Published
from rmsnorm_lab.experiments.record import Record
from rmsnorm_lab.experiments.summary import mixed_machines
from rmsnorm_lab.report import commands, figures, machines
from rmsnorm_lab.report.collect import Experiment, collect
from rmsnorm_lab.report.downloads import downloads
from rmsnorm_lab.report.experiment_tables import (
    difference_table,
    p_table,
    quality_table,
    rates_table,
    seeds_table,
    states_table,
    time_table,
)
from rmsnorm_lab.report.glance import DRAWN_INPUTS, STAND_IN, badge, glance
from rmsnorm_lab.report.headings import apart
from rmsnorm_lab.report.notes import facts, notes
from rmsnorm_lab.report.verdicts import of_all, verdict
from rmsnorm_lab.table import count

TRIALS, SEED = 10, 0
"""For the measured Table 1."""


def render(records: Sequence[Record]) -> str:
    """The whole page. The same records make the same page on one version of the software."""
    experiments = collect(records)
    for experiment in experiments:
        experiment.apart = apart(experiment, experiments)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    verdicts = [verdict(experiment) for experiment in experiments]
    anchors = [f"experiment-{place}" for place in range(1, len(experiments) + 1)]
    return environment.get_template("page.html").render(
        stand_in=STAND_IN,
        drawn=DRAWN_INPUTS,
        title=f"RMSNorm against LayerNorm: quality and time in {count(len(experiments), 'experiment')}",
        verdict=of_all([experiment.task for experiment in experiments], verdicts),
        newest=max(record.finished for record in records),
        records=count(len(records), "record"),
        sections=[_section(*each) for each in zip(experiments, anchors, [v.sentence for v in verdicts], strict=True)],
        glance=glance(anchors, experiments, verdicts),
        invariances=_invariances(),
        gradients=_gradients(),
        machines=machines.entries(records),
        mixed=mixed_machines(records),
        downloads=downloads([experiment.heading for experiment in experiments], experiments, records),
    )


def _section(experiment: Experiment, anchor: str, sentence: str) -> dict[str, Any]:
    paper = PUBLISHED.get(experiment.task, Published(""))
    source = experiment.setting.source
    seconds_shown = bool(paper.seconds) and experiment.setting.size == "paper" and "unfused" in experiment.timings
    return {
        "anchor": anchor,
        "task": experiment.task,
        "apart": experiment.apart,
        "verdict": sentence,
        "what": tasks.TASKS.get(experiment.task, ""),
        "stand_in": source.stand_in and not is_drawn(source),
        "drawn": is_drawn(source),
        "badge": badge(source),
        "source": experiment.source_name,
        "facts": facts(experiment),
        "trained": [_trained(experiment, kernels, f"{anchor}-{kernels}", paper) for kernels in experiment.lines],
        "times": [time_table(experiment, kernels, paper) for kernels in experiment.timings],
        "times_commands": list(
            dict.fromkeys(line for each in experiment.timings.values() for line in commands.of_times(experiment, each))
        ),
        "paper": paper.where + (f"; seconds: of {paper.seconds_of}" if seconds_shown else ""),
        "unlike": " · not the paper's data" if paper.where and not (experiment.official or source.stand_in) else "",
        "caveat": "" if experiment.official or not experiment.lines else f"; {CAVEAT}",
    }


def _trained(experiment: Experiment, kernels: str, name: str, paper: Published) -> dict[str, Any]:
    """The runs with one choice of kernels."""
    main, of_p = experiment.main(kernels), experiment.p_sweep(kernels)
    shown = figures.curves(experiment, kernels, name)
    if of_p:
        shown.append(figures.p_sweep(of_p, main, experiment.result.metrics[0], f"{name}-p"))
    rates, of_rates = rates_table(experiment, kernels) or (None, [])
    return {
        "quality": quality_table(experiment, kernels, paper),
        "commands": commands.of_runs(experiment, kernels),
        "differences": difference_table(experiment, kernels),
        "seeds": seeds_table(experiment, kernels),
        "rates": rates,
        "rates_commands": commands.of_rates(experiment, kernels, of_rates) if rates else [],
        "p_values": p_table(of_p, experiment.result.metrics) if of_p else None,
        "p_commands": commands.of_p(experiment, kernels, of_p) if of_p else [],
        "states": states_table(experiment, kernels),
        "notes": notes(experiment, kernels, [*of_p, *of_rates]),
        "figures": shown,
        "legend": figures.legend([line.norm for line in main]),
    }


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
