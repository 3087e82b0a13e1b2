"""The figure of ``rmsnorm partial``: the error of the RMS against k, and quality against k for each width."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from rmsnorm_lab.analysis.partial import NormRows
from rmsnorm_lab.analysis.partial_quality import Sweep
from rmsnorm_lab.experiments.trained import Trained
from rmsnorm_lab.figure_files import write_figure

COLOURS = ("#2A7FC9", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
"""Near Okabe and Ito's palette, which colour-blind readers can distinguish."""

Networks = Sequence[tuple[Trained, Sequence[NormRows]]]


def write(path: Path, networks: Networks, sweeps: Sequence[Sweep]) -> None:
    """Write the figure."""
    write_figure(path, draw(networks, sweeps))


def draw(networks: Networks, sweeps: Sequence[Sweep]) -> Figure:
    """One panel for the errors if there are networks, and one for each sweep."""
    panels = bool(networks) + len(sweeps)
    figure = Figure(figsize=(5.2 * panels, 4.2), layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    if networks:
        _errors(axes.pop(0), networks)
    for each, sweep in zip(axes, sweeps, strict=True):
        _quality(each, sweep)
    return figure


def _errors(axes: Axes, networks: Networks) -> None:
    """The median over the norms of each network that are wider than k."""
    for colour, (trained, found) in zip(_colours(len(networks)), networks, strict=True):
        of_k: dict[int, list[tuple[float, float]]] = {}
        for norm in found:
            for each in norm.estimates:
                of_k.setdefault(each.k, []).append((100 * each.error, 100 * each.random))
        medians = {k: tuple(map(statistics.median, zip(*both, strict=True))) for k, both in sorted(of_k.items())}
        measured, random = zip(*medians.values(), strict=True)
        axes.plot(list(medians), measured, color=colour, marker="o", markersize=4, label=trained.task)
        axes.plot(list(medians), random, color=colour, linestyle=(0, (1, 1)))
    axes.set(yscale="log", ylabel="error of the RMS of the first k, %")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    _of_k(axes)
    axes.legend(fontsize=8, title="dotted: k elements at random", title_fontsize=8)


def _quality(axes: Axes, sweep: Sweep) -> None:
    key, heights = sweep.metric.key, []
    for colour, (width, rows) in zip(_colours(len(sweep.widths)), sweep.widths.items(), strict=True):
        points = {k: row.metrics[key] for k, row in rows.items() if key in row.metrics}
        axes.errorbar(
            list(points),
            [quality.mean for quality in points.values()],
            yerr=[quality.sd or 0.0 for quality in points.values()],
            color=colour,
            marker="o",
            markersize=4,
            capsize=3,
            label=f"width {width}",
        )
        heights += [q.mean + side * (q.sd or 0.0) for k, q in points.items() if k > 1 for side in (-1, 1)]
    if heights and max(heights) > min(heights):  # one element tells so little that it would take all of the height
        margin = 0.08 * (max(heights) - min(heights))
        axes.set_ylim(min(heights) - margin, max(heights) + margin)
    axes.set_ylabel(f"{sweep.task}: " + sweep.metric.label.replace("\n", " "), parse_math=False)
    _of_k(axes)
    axes.legend(fontsize=9)


def _of_k(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlabel("k")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(visible=True, alpha=0.2)


def _colours(count: int) -> list[str]:
    return [COLOURS[place % len(COLOURS)] for place in range(count)]
