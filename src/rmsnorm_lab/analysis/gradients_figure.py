"""The gradient analysis as a figure: ‖∂L/∂W‖ against the scale of x and of W."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rmsnorm_lab.analysis.gradients import DELTAS, Gradients, Sweep
from rmsnorm_lab.experiments import norms
from rmsnorm_lab.figure_files import write_figure

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power(exponent: int) -> str:
    """'∝ δ', '∝ δ⁻¹', or 'constant' for 0."""
    if exponent in (0, 1):
        return ("constant", "∝ δ")[exponent]
    return f"∝ δ{str(exponent).translate(SUPERSCRIPTS)}"


def write(path: Path, found: dict[str, Gradients]) -> None:
    """Write the figure."""
    write_figure(path, draw(found))


def draw(found: dict[str, Gradients]) -> Figure:
    """Two panels of double logarithmic axes; where lines coincide, their marks alternate."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    inputs, weights = figure.subplots(1, 2, sharey=True)
    panel(inputs, {norm: each.inputs for norm, each in found.items()}, "δ, inputs x times δ")
    panel(weights, {norm: each.weights for norm, each in found.items()}, "δ, weights W times δ")
    inputs.set_ylabel("‖∂L/∂W‖ as a multiple of that at δ = 1")
    handles, labels = inputs.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=9)
    return figure


def panel(axes: Axes, sweeps: dict[str, Sweep], what: str) -> None:
    """One half of the figure, over δ."""
    for place, (norm, sweep) in enumerate(sweeps.items()):
        axes.loglog(
            DELTAS,
            sweep.length,
            color=norms.entry(norm).colour,
            linewidth=1,
            marker="o",
            markersize=5,
            markevery=(place, len(sweeps)),  # where lines coincide, each has its marks in other places
            label=norms.label(norm),
        )
    for exponent in sorted({sweep.exponent for sweep in sweeps.values() if sweep.exponent is not None}):
        axes.annotate(
            power(exponent), (DELTAS[-1], DELTAS[-1] ** exponent), (-4, 6), textcoords="offset points", ha="right"
        )
    axes.set_xlabel(what)
    axes.grid(visible=True, alpha=0.25)
    axes.margins(y=0.08)
