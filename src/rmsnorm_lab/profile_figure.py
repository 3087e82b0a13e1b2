"""A profile as a figure: a bar for each share of the step, with its interval."""

from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from rmsnorm_lab.figure_files import write_figure

if TYPE_CHECKING:
    from rmsnorm.timing import Spread
    from rmsnorm.torch.profile import NormProfile

TOTAL, NORM = "#000000", "#0072B2"


def plot(profile: "NormProfile", path: Path) -> None:
    """Write the figure."""
    figure = draw(profile)
    write_figure(path, figure)


def draw(profile: "NormProfile") -> Figure:
    bars = [
        ("all norms (the bound)", profile.cost, TOTAL),
        ("swap_norms saves", profile.swap, TOTAL),
        ("accelerate saves", profile.accelerate, TOTAL),
        *((f"{row.cls}, n = {row.n}, {row.calls} calls", row.share, NORM) for row in profile.norms),
    ]
    shown: list[tuple[str, Spread, str]] = [(name, spread, colour) for name, spread, colour in bars if spread]
    figure = Figure(figsize=(7, 1.2 + 0.35 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for place, (_, spread, colour) in enumerate(shown):
        axes.barh(place, 100 * spread.median, color=colour, alpha=0.35)
        if spread.interval:
            axes.plot([100 * end for end in spread.interval], [place, place], color=colour, marker="|")
    axes.set_yticks(range(len(shown)), [name for name, _, _ in shown])
    axes.invert_yaxis()
    axes.axvline(0, color="#888888", linewidth=0.8)
    axes.set_xlabel("% of the step: median and 95 % interval")
    axes.set_title(f"A step of {profile.step_ms:.3g} ms, threads: {profile.threads}", fontsize=10)
    return figure
