"""The report's tables of one experiment, with the paper's figures beneath those measured here."""

from rmsnorm.timing import Spread
from rmsnorm_lab.experiments import hidden_states, norms
from rmsnorm_lab.experiments.comparison import SETTINGS
from rmsnorm_lab.experiments.paper import HIDDEN_STATES, Published, label
from rmsnorm_lab.experiments.record import Metric, TimingRecord
from rmsnorm_lab.experiments.summary import QualityRow, quality_row, time_row
from rmsnorm_lab.report.collect import Experiment, processor
from rmsnorm_lab.table import Cell, Row, Table, count


def quality_table(experiment: Experiment, kernels: str, paper: Published) -> Table:
    """Every metric of every normaliser."""
    metrics, word = experiment.result.metrics, label(experiment.official)
    rows = []
    for line in experiment.main(kernels):
        row, published = quality_row(line.norm, line.records), paper.quality.get(line.norm, {})
        cells = [
            Cell(
                quality_text(row, metric),
                below=(f"{word} {published[metric.key]:g}",) if metric.key in published else (),
            )
            for metric in metrics
        ]
        rows.append(Row(norms.label(line.norm), cells))
    seeds = sorted({len(line.records) for line in experiment.main(kernels)})
    over = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    taken = "one seed each" if seeds == [1] else f"mean ± standard deviation over seeds ({over} each)"
    title = f"Quality on the test split, {_KERNELS[kernels]}: {taken}"
    return Table(["norm", *map(heading, metrics)], rows, title)


_KERNELS = {
    "unfused": "norms in framework operators",
    "rmsnorm": "this project's kernels",
    "best": "torch's LayerNorm, this project's kernels for the others",
}


def states_table(experiment: Experiment, kernels: str) -> Table | None:
    """The paper's Table 5, for networks with a decoder; None for others."""
    rows = []
    for line in experiment.main(kernels):
        found = quality_row(line.norm, line.records).metrics
        cells = []
        for part, keys in hidden_states.KEYS.items():
            published = HIDDEN_STATES.get(line.norm, {}).get(part, ("",) * len(keys))
            for key, said in zip(keys, published, strict=True):
                measured = _signed(found[key].mean, 2) if key in found else "–"
                cells.append(Cell(measured, below=(f"paper {_signed(said, 2)}",) if isinstance(said, float) else ()))
        if any(key in found for key in hidden_states.KEYS["mean"]):
            rows.append(Row(norms.label(line.norm), cells))
    words = ["all" if position == "all" else f"word {position}" for position in hidden_states.POSITIONS]
    headings = ["norm"] + [f"{part}, {word}" for part in hidden_states.KEYS for word in words]
    title = "The decoder's hidden-to-hidden activations by the target's word, validation set (the paper's Table 5"
    title += ")" if experiment.official else ", on other data)"
    return Table(headings, rows, title) if rows else None


def heading(metric: Metric) -> str:
    """A metric's label, and an arrow in the direction that is better."""
    return f"{metric.label}\N{NO-BREAK SPACE}{'↑' if metric.higher_is_better else '↓'}".replace("\n", " ")


def quality_text(row: QualityRow, metric: Metric) -> str:
    """'2.345 ± 0.012'; if runs diverged, it says how many."""
    diverged = f"{row.diverged} of {row.runs} diverged"
    if metric.key not in row.metrics:
        return "diverged" if row.runs == 1 else diverged
    quality, form = row.metrics[metric.key], metric.form
    spread = "" if quality.sd is None else f" ± {quality.sd:{form}}"
    return f"{quality.mean:{form}}{spread}" + (f", {diverged}" if row.diverged else "")


def time_table(experiment: Experiment, kernels: str, paper: Published) -> Table:
    """What a step costs. The paper's saving is shown for unfused norms only, which is how the paper measured it."""
    record = experiment.timings[kernels]
    saved = paper.saved if kernels == "unfused" else {}
    rows = []
    for norm in record.identity.norms:
        row = time_row(norm, record)
        cells = [
            Cell(f"{row.milliseconds:.1f}"),
            percent(row.saved, f"paper {saved[norm]}" if norm in saved else ""),
            percent(row.norm_share),
            Cell("–" if row.profiled_share is None else f"{100 * row.profiled_share:.1f}"),
            Cell(f"{row.peak_memory / 2**20:.1f}"),
        ]
        rows.append(Row(norms.label(norm), cells))
    headings = [
        *("norm", "ms per step", "time saved, % of LayerNorm's step"),
        *("% in norms, by ablation", "% in norms, by profiler", "peak MiB"),
    ]
    machine = record.machine
    torch = machine.versions["torch"]
    note = f"one step of each per round, {_when(record)}; {count(machine.torch_threads, 'thread')}, torch {torch}"
    if others := experiment.other_timings.get(kernels):
        note += f". Also timed, not shown: {'; '.join(map(_when, others))}"
    return Table(headings, rows, SETTINGS[kernels][0].upper() + SETTINGS[kernels][1:], note)


def _when(timing: TimingRecord) -> str:
    when = timing.finished[:16].replace("T", " ")
    return f"{timing.result.rounds} rounds on {processor(timing)}, {when} UTC"


def percent(spread: Spread | None, paper: str = "") -> Cell:
    """A share in percent with its confidence interval, and the paper's."""
    published = (paper,) if paper else ()
    if spread is None:
        return Cell("–", published)
    if spread.interval is None:
        return Cell(_signed(100 * spread.median), ("too few rounds", *published))
    low, high = spread.interval
    return Cell(_signed(100 * spread.median), (f"[{_signed(100 * low)}, {_signed(100 * high)}]", *published))


def _signed(value: float, digits: int = 1) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")  # + 0.0: no "−0.0"
