"""The figure: for each group of cases, the rates of all providers, and their times over this project's."""

from collections.abc import Iterable
from pathlib import Path

from matplotlib.figure import Figure  # not pyplot, which needs a display and has state

from rmsnorm_lab.bench.case_tables import LIMIT, OURS, RECURRENT_LIMIT, about, figures
from rmsnorm_lab.bench.providers import all_providers
from rmsnorm_lab.bench.records import Record
from rmsnorm_lab.figure_files import write_figure

GROUPS = 4  # more columns cannot be read on one page; the groups with the most shapes are drawn


def plot(records: Iterable[Record], path: Path) -> None:
    """Write the figure: one column per group (at most ``GROUPS``), shapes from small to large."""
    known = {provider.name: provider for provider in all_providers(threads=1)}
    grouped: dict[str, list[Record]] = {}
    for record in records:
        grouped.setdefault(record.case.group, []).append(record)
    largest = sorted(grouped, key=lambda heading: -len(grouped[heading]))[:GROUPS]
    shown = {heading: sorted(grouped[heading], key=lambda r: r.case.bytes) for heading in grouped if heading in largest}

    figure = Figure(figsize=(4.6 * len(shown) + 1.6, 7.2), layout="constrained")
    axes = figure.subplots(2, len(shown), squeeze=False, sharex="col", sharey="row")
    labelled = {}
    for column, (heading, members) in enumerate(shown.items()):
        rate, time = axes[:, column]
        for name in dict.fromkeys(name for record in members for name in record.results):
            rows = ((place, row) for place, record in enumerate(members) for row in figures(record))
            points = [(place, row) for place, row in rows if row.name == name]
            result = points[0][1].result
            style = {
                "color": known[name].colour if name in known else None,
                "linestyle": "-" if result.fresh else "--",
                "linewidth": 2.2 if name in OURS.values() else 1.2,
                "marker": None if result.limit else known[name].marker if name in known else "o",
                "markersize": 3.5,
            }
            places = [place for place, _ in points]
            (line,) = rate.plot(places, [row.rate for _, row in points], **style)
            labelled[name] = line
            if name not in (*OURS.values(), *LIMIT.values(), RECURRENT_LIMIT):
                compared = [(place, 1 / row.ours_over) for place, row in points if row.ours_over]
                time.plot(*zip(*compared, strict=True) if compared else ([], []), **style)
        rate.set_title(heading, fontsize=9)
        rate.set_yscale("log")
        time.set_yscale("log")
        time.axhline(1, color="black", linewidth=2.2)
        labels = [record.case.shape.replace("x", " × ") for record in members]
        time.set_xticks(range(len(members)), labels, rotation=45, ha="right", fontsize=8)
        for axis in (rate, time):
            axis.grid(alpha=0.3, which="both", linewidth=0.5)
    units = dict.fromkeys(members[0].case.work[1] for members in shown.values())
    axes[0, 0].set_ylabel(" or ".join(units) + " (dashed: warm output)")
    axes[1, 0].set_ylabel("peer's time ÷ rmsnorm's (above 1: slower)")
    figure.legend(labelled.values(), labelled.keys(), loc="outside right upper", fontsize=8)
    figure.supxlabel(about(next(iter(shown.values()))[-1].machine), fontsize=6, color="#666666")
    write_figure(path, figure)
