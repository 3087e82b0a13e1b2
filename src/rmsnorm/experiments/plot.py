"""Loss by steps and loss by wall time, beside each other."""

import io
import statistics
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rmsnorm.experiments.compare import Row
from rmsnorm.experiments.recipes import LABELS
from rmsnorm.experiments.runs import Record, write_whole

# Of the Okabe-Ito palette, which the colour-blind can tell apart; the line styles part what lies on top of each other.
_STYLES: dict[str, tuple[str, Any]] = {
    "none": ("#555555", (0, (1, 1))),
    "layer": ("#E69F00", "-"),
    "rms": ("#0072B2", "--"),
    "prms": ("#009E73", "-."),
}


def draw(path: Path, title: str, rows: list[Row], runs: dict[str, list[Record]], unigram_bits: float) -> None:
    """Held-out bits per character: mean over seeds, band ± one standard deviation.

    The wall time of a point is its step times the step time of the interleaved timing, not what the clock said
    in that run: another program that ran meanwhile would be drawn as the normaliser's.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    by_steps, by_time = figure.subplots(1, 2, sharey=True)
    ends: list[float] = []
    for row in rows:
        colour, style = _STYLES[row.norm]
        steps, mean, sd = _mean_curve([record["result"]["curve"] for record in runs[row.norm]])
        label = LABELS[row.norm] + (f" ({row.diverged} of {row.runs} diverged)" if row.diverged else "")
        for axes, scale in ((by_steps, 1.0), (by_time, row.milliseconds / 1000)):
            x = [step * scale for step in steps]
            axes.plot(x, mean, color=colour, linestyle=style, marker="o", markersize=3, label=label)
            axes.fill_between(
                x,
                [m - s for m, s in zip(mean, sd, strict=True)],
                [m + s for m, s in zip(mean, sd, strict=True)],
                color=colour,
                alpha=0.15,
                linewidth=0,
            )
        ends += mean[-1:]
    for axes in (by_steps, by_time):
        axes.axhline(unigram_bits, color="#999999", linewidth=0.8, linestyle=":", label="character frequencies alone")
        axes.grid(alpha=0.25)
    if ends and max(ends) < unigram_bits:
        # The fall from guessing to the frequencies says nothing of normalisers and would take half the height.
        by_steps.set_ylim(min(ends) - 0.05 * unigram_bits, 1.08 * unigram_bits)
    by_steps.set_xlabel("training steps")
    by_steps.set_ylabel("held-out bits per character")
    by_time.set_xlabel("wall time in seconds (steps × interleaved step time)")
    by_time.legend(fontsize=9)
    figure.suptitle(title, fontsize=11)

    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=130)
    write_whole(path, image.getvalue())


def _mean_curve(curves: list[dict[str, list[Any]]]) -> tuple[list[int], list[float], list[float]]:
    """Steps, mean and standard deviation, as far as every seed has a finite loss."""
    steps: list[int] = []
    mean: list[float] = []
    sd: list[float] = []
    for place in zip(*(zip(curve["step"], curve["held_out_bits"], strict=True) for curve in curves), strict=False):
        bits = [value for _, value in place]
        if None in bits:
            break
        steps.append(place[0][0])
        mean.append(statistics.fmean(bits))
        sd.append(statistics.stdev(bits) if len(bits) > 1 else 0.0)
    return steps, mean, sd
