"""The report's tables of one experiment, with the paper's figures beneath those measured here."""

from collections.abc import Sequence

from rmsnorm.timing import Spread
from rmsnorm_lab.experiments import hidden_states, norms, paired, rate_sweep
from rmsnorm_lab.experiments.comparison import SETTINGS, quality_cell
from rmsnorm_lab.experiments.paired import Difference
from rmsnorm_lab.experiments.paper import HIDDEN_STATES, Published, label
from rmsnorm_lab.experiments.record import Metric, TimingRecord
from rmsnorm_lab.experiments.summary import percent, quality_row, time_row
from rmsnorm_lab.report.collect import Experiment, Line, processor
from rmsnorm_lab.table import Cell, Row, Table, count, signed


def quality_table(experiment: Experiment, kernels: str, paper: Published) -> Table:
    """Every metric of every normaliser."""
    metrics, word = experiment.result.metrics, label(experiment.official)
    main = experiment.main(kernels)
    counted = any(line.parameters for line in main)
    rows = []
    for line in main:
        row, published = quality_row(line.norm, line.records), paper.quality.get(line.norm, {})
        cells = [
            quality_cell(row, metric, *([f"{word} {published[metric.key]:g}"] if metric.key in published else []))
            for metric in metrics
        ]
        if counted:
            cells.append(Cell(f"{line.parameters:,}" if line.parameters else "–"))
        rows.append(Row(norms.label(line.norm), cells))
    seeds = sorted({len(line.records) for line in main})
    over = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    taken = "one seed each" if seeds == [1] else f"mean ± standard deviation over seeds ({over} each)"
    title = f"Quality on the test split, {_KERNELS[kernels]}: {taken}"
    return Table(["norm", *map(heading, metrics), *(["parameters"] if counted else [])], rows, title)


def difference_table(experiment: Experiment, kernels: str) -> Table | None:
    """Every norm's difference from LayerNorm, paired by seed; None without two norms of which one is LayerNorm."""
    records = {line.norm: line.records for line in experiment.main(kernels)}
    layer, metrics = records.pop("layer", None), experiment.result.metrics
    if layer is None or not records:
        return None
    rows = []
    for norm, ours in records.items():
        found = [paired.difference(metric, ours, layer) for metric in metrics]
        rows.append(Row(f"{norms.label(norm)} − LayerNorm", list(map(_difference_cell, found))))
    note = (
        "Runs with the same seed start from the same weights and see the same batches. The interval is Student's t; it "
        "takes the differences of the seeds as normally distributed. Each is of 95 % by itself."
    )
    return Table(["", *map(heading, metrics)], rows, "Difference from LayerNorm, paired by seed [95 % interval]", note)


def _difference_cell(found: Difference | None) -> Cell:
    if found is None:
        return Cell("–")
    mean, interval = found.texts()
    if not interval:
        return Cell(mean, ("one seed",))
    kind, word = {None: ("", "no difference shown"), True: ("yes", "better"), False: ("off", "worse")}[found.better]
    return Cell(mean, (interval, word), kind)


def seeds_table(experiment: Experiment, kernels: str) -> Table:
    """Every run of the table of quality by itself."""
    metrics = experiment.result.metrics
    rows = []
    for line in experiment.main(kernels):
        for run in line.records:
            quality, losses = run.result.quality, run.result.curve.train_loss
            cells = [
                f"diverged at step {run.result.diverged_at}"
                if quality is None
                else f"{quality[metric.key]:{metric.form}}"
                for metric in metrics
            ]
            last = losses[-1] if losses else None
            rows.append(
                Row(
                    f"{norms.label(line.norm)}, seed {run.identity.seed}",
                    [*cells, "–" if last is None else f"{last:.4g}"],
                )
            )
    return Table(["run", *map(heading, metrics), "training loss at the end"], rows, "Single seeds, test split")


def rates_table(experiment: Experiment, kernels: str) -> tuple[Table, list[Line]] | None:
    """The sweep of the learning rate and the lines that it shows; None if no norm was trained with several rates."""
    of = {}
    for main in experiment.main(kernels):
        lines = [each for each in experiment.lines[kernels] if (each.norm, each.p) == (main.norm, main.p)]
        if len(lines) > 1:
            of[main.norm] = lines
    if not of:
        return None
    runs = {norm: [run for line in lines for run in line.records] for norm, lines in of.items()}
    found = rate_sweep.swept(runs)
    if not found.valid:
        return None
    seeds = sorted({seed for norm in found.valid for seed in rate_sweep.seeds_of_all_rates(runs[norm])})
    over = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    label = found.metric.validation_label
    title = f"Learning rates: {label}{_arrow(found.metric)}, validation split, {over}"
    return rate_sweep.table(found, title), [line for norm in found.valid for line in of[norm]]


def p_table(lines: Sequence[Line], metrics: Sequence[Metric]) -> Table:
    """The paper's Fig. 3 in figures: pRMSNorm's quality with each p. ``lines``: those of ``Experiment.p_sweep``."""
    rows = []
    for line in lines:
        found = quality_row(line.norm, line.records)
        rows.append(Row(f"{100 * (line.p or 1.0):g}", [quality_cell(found, metric) for metric in metrics]))
    seeds = " or ".join(map(str, sorted({len(line.records) for line in lines})))
    title = f"pRMSNorm on the test split by p: mean ± standard deviation over seeds ({seeds} each)"
    return Table(["p, %", *map(heading, metrics)], rows, title)


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
                measured = signed(found[key].mean, ".2f") if key in found else "–"
                cells.append(Cell(measured, below=(f"paper {signed(said, '.2f')}",) if isinstance(said, float) else ()))
        if any(key in found for key in hidden_states.KEYS["mean"]):
            rows.append(Row(norms.label(line.norm), cells))
    words = ["all" if position == "all" else f"word {position}" for position in hidden_states.POSITIONS]
    headings = ["norm"] + [f"{part}, {word}" for part in hidden_states.KEYS for word in words]
    title = "The decoder's hidden-to-hidden activations by the target's word, validation set (the paper's Table 5"
    title += ")" if experiment.official else ", on other data)"
    return Table(headings, rows, title) if rows else None


def heading(metric: Metric) -> str:
    """A metric's label, and an arrow in the direction that is better."""
    return f"{metric.label}{_arrow(metric)}".replace("\n", " ")


def _arrow(metric: Metric) -> str:
    return f"\N{NO-BREAK SPACE}{'↑' if metric.higher_is_better else '↓'}"


def time_table(experiment: Experiment, kernels: str, paper: Published) -> Table:
    """What a step costs. The paper's saving is shown for unfused norms only, which is how the paper measured it."""
    record = experiment.timings[kernels]
    saved, examples = paper.saved if kernels == "unfused" else {}, experiment.examples
    seconds = paper.seconds if kernels == "unfused" and experiment.setting.size == "paper" else {}
    rows = []
    for norm in record.identity.norms:
        row = time_row(norm, record)
        cells = [
            Cell(f"{row.milliseconds:.1f}", (f"paper {seconds[norm]} s",) if norm in seconds else ()),
            *([Cell(f"{1000 * examples[0] / row.milliseconds:,.0f}")] if examples else []),
            share(row.saved, *([f"paper {saved[norm]}"] if norm in saved else [])),
            share(row.norm_share),
            Cell("–" if row.profiled_share is None else f"{100 * row.profiled_share:.1f}"),
            Cell(f"{row.peak_memory / 2**20:.1f}"),
        ]
        rows.append(Row(norms.label(norm), cells))
    headings = [
        *("norm", "ms per step", *([f"{examples[1]} per second"] if examples else [])),
        "time saved, % of LayerNorm's step",
        *("% in norms, by ablation", "% in norms, by profiler", "peak MiB"),
    ]
    machine = record.machine
    torch = machine.versions["torch"]
    note = f"one step of each per round, {_when(record)}; {count(machine.torch_threads, 'thread')}, torch {torch}"
    if record.identity.biases == "alike":
        note += "; recurrences with torch's biases, alike for every norm, instead of the paper's"
    if record.result.memory is not None:
        note += f"; all networks together: {record.result.memory / 2**30:.1f} GiB of tensors"
    if others := experiment.other_timings.get(kernels):
        note += f". Also timed, not shown: {'; '.join(map(_when, others))}"
    return Table(headings, rows, SETTINGS[kernels][0].upper() + SETTINGS[kernels][1:], note)


def _when(timing: TimingRecord) -> str:
    when = timing.finished[:16].replace("T", " ")
    return f"{timing.result.rounds} rounds on {processor(timing)}, {when} UTC"


def share(found: Spread | None, *more: str) -> Cell:
    """A share in percent with its confidence interval, and what else is said of it."""
    if found is None:
        return Cell("–", more)
    median, interval = percent(found)
    return Cell(median, (interval or "too few rounds", *more))
