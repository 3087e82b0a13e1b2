"""The overview: one line for each experiment."""

from collections.abc import Sequence

from markupsafe import Markup

from rmsnorm_lab.experiments import norms
from rmsnorm_lab.experiments.comparison import quality_cell
from rmsnorm_lab.experiments.data.official import is_drawn
from rmsnorm_lab.experiments.paper import PUBLISHED, Published
from rmsnorm_lab.experiments.record import Content
from rmsnorm_lab.experiments.summary import quality_row
from rmsnorm_lab.report.collect import Experiment
from rmsnorm_lab.report.experiment_tables import heading, share
from rmsnorm_lab.report.verdicts import Verdict
from rmsnorm_lab.table import Cell, Row, Table

_LABEL = Markup('<a href="#{}">{}</a> {}<span class="below">{}</span><span class="below">{}</span>')
_SAVED = {
    "unfused": "time RMSNorm saves, %: unfused",
    "rmsnorm": "this project's kernels",
    "best": "best LayerNorm",
}
STAND_IN = Markup('<span class="stand-in">stand-in data</span>')
DRAWN_INPUTS = Markup('<span class="stand-in">inputs drawn at random</span>')


def badge(source: Content) -> Markup:
    """What marks tables and figures of data that are not the paper's; empty for the user's files."""
    return DRAWN_INPUTS if is_drawn(source) else STAND_IN if source.stand_in else Markup()


def glance(anchors: Sequence[str], experiments: Sequence[Experiment], verdicts: Sequence[Verdict]) -> Table:
    """LayerNorm, RMSNorm and pRMSNorm by the headline metric, their difference, and what RMSNorm saves."""
    rows = [_row(*each) for each in zip(anchors, experiments, verdicts, strict=True)]
    shown = [norms.label(norm) for norm in _SHOWN]
    return Table(["task", *shown, "RMSNorm − LayerNorm", *_SAVED.values()], rows)


_SHOWN = ("layer", "rms", "prms")


def _row(anchor: str, experiment: Experiment, verdict: Verdict) -> Row:
    metric, quality = "", dict.fromkeys(_SHOWN, Cell("–"))
    if experiment.lines:
        headline = experiment.result.metrics[0]
        metric = heading(headline)
        for line in experiment.main(next(iter(experiment.lines))):
            if line.norm in quality:
                quality[line.norm] = quality_cell(quality_row(line.norm, line.records), headline)
    difference = Cell("–")
    if verdict.difference:
        mean, interval = verdict.difference.texts()
        difference = Cell(mean, (interval or "one seed",))
    published = PUBLISHED.get(experiment.task, Published("")).saved.get("rms")
    saved = []
    for kernels in _SAVED:
        # The paper timed norms in framework operators.
        more = [f"paper {published}"] if kernels == "unfused" and published else []
        saved.append(share(verdict.saved.get(kernels), *more))
    mark = badge(experiment.setting.source)
    label = _LABEL.format(anchor, experiment.task, mark, experiment.apart, metric)
    return Row(label, [*quality.values(), difference, *saved])
