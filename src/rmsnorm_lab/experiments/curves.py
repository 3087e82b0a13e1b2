"""Loss by steps and loss by wall time, side by side."""

import io
import statistics
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rmsnorm_lab.experiments import norms
from rmsnorm_lab.experiments.record import Curve, RunRecord
from rmsnorm_lab.experiments.summary import QualityRow, TimeRow
from rmsnorm_lab.experiments.task import Task
from rmsnorm_lab.files import write_whole

LARGEST = 1e300
"""Of a figure's values: beyond it Matplotlib's margins overflow."""


def draw(
    path: Path,
    title: str,
    task: Task,
    rows: list[QualityRow],
    times: list[TimeRow] | None,
    runs: dict[str, list[RunRecord]],
) -> None:
    """The headline metric on the validation split: mean over seeds, band ± one standard deviation.

    The wall time of a point is its step times the step time of the interleaved timing, not what the clock said in that
    run: another program that ran meanwhile would be drawn as the normaliser's. Without a timing there is no such half.
    """
    figure = Figure(figsize=(11 if times else 6.5, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    halves = figure.subplots(1, 2 if times else 1, sharey=True, squeeze=False)[0]
    milliseconds = {row.norm: row.milliseconds for row in times or ()}
    metric = task.metrics[0]
    ends: list[float] = []
    for row in rows:
        norm = norms.entry(row.norm)
        steps, mean, sd = mean_curve([record.result.curve for record in runs[row.norm]], metric.key)
        label = norms.label(row.norm) + (f" ({row.diverged} of {row.runs} diverged)" if row.diverged else "")
        for axes, scale in zip(halves, (1.0, milliseconds.get(row.norm, 0.0) / 1000), strict=False):
            x = [step * scale for step in steps]
            axes.plot(x, mean, color=norm.colour, linestyle=norm.line, marker="o", markersize=3, label=label)
            axes.fill_between(
                x,
                [m - s for m, s in zip(mean, sd, strict=True)],
                [m + s for m, s in zip(mean, sd, strict=True)],
                color=norm.colour,
                alpha=0.15,
                linewidth=0,
            )
        ends += mean[-1:]
    for axes in halves:
        for place, (name, value) in enumerate(task.references.items()):
            axes.axhline(value, color="#999999", linewidth=0.8, linestyle=(0, (1, 1 + place)), label=name)
        axes.grid(alpha=0.25)
    beaten = [value for value in task.references.values() if ends and not metric.higher_is_better and value > max(ends)]
    if beaten:
        # The first fall, from guessing, is the same for all normalisers and would take half of the height.
        halves[0].set_ylim(min(ends) - 0.05 * min(beaten), 1.08 * min(beaten))
    halves[0].set_xlabel("training steps")
    halves[0].set_ylabel(f"{metric.validation_label}, validation", parse_math=False)
    if times:
        halves[1].set_xlabel("wall time in seconds (steps × interleaved step time)")
    halves[-1].legend(fontsize=9)
    figure.suptitle(title, fontsize=11)

    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=130)
    write_whole(path, image.getvalue())


def mean_curve(curves: list[Curve], key: str) -> tuple[list[int], list[float], list[float]]:
    """Steps, mean and standard deviation, while every seed has a loss that can be drawn."""
    steps: list[int] = []
    mean: list[float] = []
    sd: list[float] = []
    for place in zip(*(zip(curve.step, curve.valid[key], strict=True) for curve in curves), strict=False):
        values = [value for _, value in place if value is not None]
        if len(values) < len(place) or max(map(abs, values)) > LARGEST:
            break
        steps.append(place[0][0])
        mean.append(statistics.fmean(values))
        sd.append(statistics.stdev(values) if len(values) > 1 else 0.0)
    return steps, mean, sd
