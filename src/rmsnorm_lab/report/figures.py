"""The report's figures: curves by steps and by wall time (the paper's Fig. 1), p's sweep (Fig. 3), gradients (§4.2)."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rmsnorm_lab.analysis import gradients_figure
from rmsnorm_lab.analysis.gradients import Gradients
from rmsnorm_lab.experiments import norms
from rmsnorm_lab.experiments.curves import mean_curve
from rmsnorm_lab.experiments.record import Metric
from rmsnorm_lab.experiments.summary import quality_row, time_row
from rmsnorm_lab.report.collect import Experiment, Line, processor
from rmsnorm_lab.report.svg import drawing, inline

SIZE = (4.6, 3.3)
"""Inches of a panel. On a phone it is 90 mm wide, and its text is as large as the page's small print."""


@dataclass(frozen=True)
class Drawn:
    """One panel."""

    svg: Markup
    caption: str


def curves(experiment: Experiment, kernels: str, name: str) -> list[Drawn]:
    """Validation loss by steps, the same by wall time if there is a timing, and the headline metric by steps.

    The wall time of a point is its steps times the interleaved step time. The clock of the run itself would include
    what other programs did.
    """
    lines = experiment.main(kernels)
    headline = experiment.result.metrics[0]
    label = headline.validation_label
    steps = "training steps"
    found = [_curve(lines, "loss", None, (steps, "validation loss"), f"{name}-loss", "Loss by steps")]
    if kernels in experiment.timings:
        timing = experiment.timings[kernels]
        timed = [line for line in lines if line.norm in timing.result.milliseconds]
        seconds = {line.norm: time_row(line.norm, timing).milliseconds / 1000 for line in timed}
        caption = "Loss by wall time: steps × interleaved step time"
        made_on = {processor(record) for line in lines for record in line.records}
        if made_on != {processor(timing)}:
            caption += f" on {processor(timing)}"
        found.append(_curve(timed, "loss", seconds, ("seconds", "validation loss"), f"{name}-time", caption))
    caption = f"{label[:1].upper()}{label[1:]} by steps, validation"
    found.append(_curve(lines, headline.key, None, (steps, label), f"{name}-headline", caption))
    return found


def _curve(
    lines: Sequence[Line],
    key: str,
    seconds: dict[str, float] | None,
    labels: tuple[str, str],
    name: str,
    caption: str,
) -> Drawn:
    with drawing():
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        later: list[float] = []
        for line in lines:
            norm = norms.entry(line.norm)
            steps, mean, sd = mean_curve([record.result.curve for record in line.records], key)
            x = [step * (seconds[line.norm] if seconds else 1) for step in steps]
            low, high = ([m + sign * s for m, s in zip(mean, sd, strict=True)] for sign in (-1, 1))
            axes.plot(x, mean, color=norm.colour, linestyle=norm.line, linewidth=1.6, marker="o", markersize=2.5)
            axes.fill_between(x, low, high, color=norm.colour, alpha=0.15, linewidth=0)
            settled = [place for place, step in enumerate(steps) if step >= steps[-1] / 4]
            later += [bound[place] for bound in (low, high) for place in settled]
        _without_the_first_fall(axes, later)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1], parse_math=False)  # from a record: a "$" in it is no formula
        return Drawn(inline(figure, name, caption), caption)


def _without_the_first_fall(axes: Axes, later: Sequence[float]) -> None:
    """Set the limits without the first quarter, which takes most of the height and distinguishes no normalisers."""
    if later and min(later) < max(later):
        margin = 0.06 * (max(later) - min(later))
        axes.set_ylim(min(later) - margin, max(later) + margin)


def p_sweep(lines: Sequence[Line], beside: Sequence[Line], metric: Metric, name: str) -> Drawn:
    """The headline metric on the test split against p: mean ± standard deviation over seeds, LayerNorm's and
    RMSNorm's means ``beside`` it as lines."""
    key, label = metric.key, metric.label.replace("\n", " ")
    rows = [(line, quality_row(line.norm, line.records).metrics) for line in lines]
    points = [(100 * (line.p or 1.0), found[key]) for line, found in rows if key in found]
    with drawing():
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        axes.errorbar(
            [p for p, _ in points],
            [quality.mean for _, quality in points],
            yerr=[quality.sd or 0.0 for _, quality in points],
            color=norms.entry("prms").colour,
            marker="o",
            markersize=4,
            capsize=3,
        )
        for line in beside:
            if line.norm in ("layer", "rms") and key in (found := quality_row(line.norm, line.records).metrics):
                norm = norms.entry(line.norm)
                axes.axhline(found[key].mean, color=norm.colour, linestyle=norm.line, linewidth=1.2)
        axes.set_xlabel("p, % of the elements")
        axes.set_ylabel(label, parse_math=False)
        axes.set_xlim(0, 105)
        caption = f"{label[:1].upper()}{label[1:]} against pRMSNorm's p, test (the paper's Fig. 3)"
        return Drawn(inline(figure, name, caption), caption)


def gradients(found: dict[str, Gradients]) -> list[Drawn]:
    """‖∂L/∂W‖ against the scale of x and of W."""
    drawn = []
    for part, text, caption in (
        ("inputs", "δ, inputs x times δ", "Size of ∂L/∂W, inputs re-scaled"),
        ("weights", "δ, weights W times δ", "Size of ∂L/∂W, weights re-scaled"),
    ):
        with drawing():
            figure = Figure(figsize=SIZE, layout="constrained")
            axes = figure.subplots()
            gradients_figure.panel(axes, {norm: getattr(each, part) for norm, each in found.items()}, text)
            axes.set_ylabel("‖∂L/∂W‖, 1 at δ = 1")
            drawn.append(Drawn(inline(figure, f"gradients-{part}", caption), caption))
    return drawn


def legend(names: Sequence[str], dashed: bool = True) -> list[tuple[str, str, str]]:
    """(label, colour, SVG's stroke-dasharray) of each normaliser."""
    shown = map(norms.entry, names)
    return [(norm.label, norm.colour, _dashes(norm.line) if dashed else "none") for norm in shown]


def _dashes(style: str | tuple[int, tuple[float, ...]]) -> str:
    if isinstance(style, tuple):
        return " ".join(f"{2 * length:g}" for length in style[1])
    return {"-": "none", "--": "7 3", "-.": "7 3 2 3"}[style]
