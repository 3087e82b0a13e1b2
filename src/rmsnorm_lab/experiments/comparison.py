"""The tables of a comparison: quality with the paper's row beneath each, and time in each setting on its own."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from rmsnorm.timing import FEWEST
from rmsnorm_lab.experiments import norms, paired
from rmsnorm_lab.experiments.data.official import is_drawn, is_official
from rmsnorm_lab.experiments.learner import Setup
from rmsnorm_lab.experiments.paper import CAVEAT, PUBLISHED, Published, label
from rmsnorm_lab.experiments.record import Record, RunRecord, TimingRecord, runs_of, timings_of
from rmsnorm_lab.experiments.summary import QualityRow, TimeRow, mixed_machines, percent
from rmsnorm_lab.experiments.task import Metric, Task
from rmsnorm_lab.table import Cell, Row, Table, count

SETTINGS = {
    "unfused": "time, unfused: every norm in framework operators, as the paper had it",
    "rmsnorm": "time, this project's kernels for LayerNorm and RMSNorm both",
    "best": "time, torch's LayerNorm against this project's RMSNorm",
}
METRICS_A_TABLE = 5
"""More columns do not fit a terminal."""


@dataclass(frozen=True)
class Comparison:
    """Everything that the tables of one task say."""

    task: Task
    setup: Setup
    quality: list[QualityRow]
    times: dict[str, list[TimeRow]]
    """By setting; empty where none were asked for."""
    records: list[Record]
    plot: str


def source_of(task: Task) -> str:
    """The data, for a heading."""
    if is_drawn(task.source.content):
        return task.source.name
    return f"stand-in: {task.source.name}" if task.source.stand_in else task.source.name


def heading(verb: str, task: Task, setup: Setup) -> str:
    """The line above what a command prints of a task."""
    size = "" if task.recipe.size == "small" else f"{task.recipe.size} size · "
    device = "" if setup.device == "cpu" else f" · {setup.device}"
    train = task.recipe.train
    warm = f", within the warm-up of {train.warmup_steps}" if train.steps < train.warmup_steps else ""
    return f"{verb} {task.name} · {source_of(task)} · {size}{train.steps} steps{warm}{device}"


def show_quality(comparison: Comparison, console: Console) -> None:
    """Print the quality, which is known before the times."""
    task = comparison.task
    paper = PUBLISHED.get(task.name, Published(""))
    console.print(
        heading("compare", task, comparison.setup), style="bold", highlight=False, markup=False, soft_wrap=True
    )
    tables = -(-len(task.metrics) // METRICS_A_TABLE)
    each = -(-len(task.metrics) // tables)
    for start in range(0, len(task.metrics), each):
        metrics = task.metrics[start : start + each]
        _quality_table(comparison.quality, metrics, paper, _official(task)).show(console)


def show_times(comparison: Comparison, console: Console) -> None:
    """Print the times, and the notes on both tables."""
    paper = PUBLISHED.get(comparison.task.name, Published(""))
    for kernels, rows in comparison.times.items():
        published = paper if kernels == "unfused" else Published("")
        time_table(SETTINGS[kernels], rows, published, comparison.task.recipe.size).show(console)
    for note in notes(comparison):
        console.print(note, highlight=False, markup=False, soft_wrap=True)


def _official(task: Task) -> bool:
    return is_official(task.name, task.source.content)


def _quality_table(quality: Sequence[QualityRow], metrics: Sequence[Metric], paper: Published, official: bool) -> Table:
    rows = []
    for each in quality:
        rows.append(Row(norms.label(each.norm), [quality_cell(each, metric) for metric in metrics]))
        published = paper.quality.get(each.norm, {})
        if any(metric.key in published for metric in metrics):
            cells = [f"{published[m.key]:{m.form}}" if m.key in published else "" for m in metrics]
            rows.append(Row(f"  {label(official)}", cells, style="dim"))
    return Table(["norm", *(metric.label for metric in metrics)], rows)


def quality_cell(each: QualityRow, metric: Metric, *more: str) -> Cell:
    """'2.345 ± 0.012'; if a run diverged, the cell says so. ``more``: what else is below."""
    if metric.key not in each.metrics:
        return Cell("diverged" if each.runs == 1 else f"diverged ({each.diverged} of {each.runs})", more)
    quality = each.metrics[metric.key]
    sd = "" if quality.sd is None else f" ± {quality.sd:{metric.form}}"
    diverged = (f"{each.diverged} of {each.runs} diverged",) if each.diverged else ()
    return Cell(f"{quality.mean:{metric.form}}{sd}", (*diverged, *more))


def time_table(title: str, times: Sequence[TimeRow], paper: Published, size: str) -> Table:
    """The times of one setting; below each norm what the paper has of it, its seconds beside its own sizes alone."""
    # In a terminal's 80 columns, so in two lines each.
    saved = "time saved, %" + ("\n[95 % CI]" if any(each.saved and each.saved.interval for each in times) else "")
    rows = []
    for each in times:
        cells = [
            f"{each.milliseconds:.1f}",
            "" if each.saved is None else " ".join(filter(None, percent(each.saved))),
            "" if each.norm_share is None else f"{100 * each.norm_share.median:.1f}",
            "" if each.profiled_share is None else f"{100 * each.profiled_share:.1f}",
            f"{each.peak_memory / 2**20:.1f}",
        ]
        rows.append(Row(norms.label(each.norm), cells))
        seconds = paper.seconds.get(each.norm, "") if size == "paper" else ""
        if seconds or each.norm in paper.saved:
            cells = [f"{seconds} s" if seconds else "", paper.saved.get(each.norm, ""), "", "", ""]
            rows.append(Row("  paper", cells, style="dim"))
    headings = ["norm", "ms per\nstep", saved, "in norms, %\nablation", "\nprofiler", "peak\nMiB"]
    return Table(headings, rows, title)


def notes(comparison: Comparison) -> list[str]:
    """The notes under the tables, one line each."""
    task, records = comparison.task, comparison.records
    found = [*_against_layer_norm(comparison), *_about_quality(comparison), about_data(task)]
    if timed := timings_of(records):
        found += about_times(timed, comparison.setup)
    if task.name in PUBLISHED:
        found.append(f"paper: {PUBLISHED[task.name].where}" + ("" if _official(task) else f"; {CAVEAT}"))
    found.append(f"records: {comparison.plot.rpartition('/')[0] or '.'}; plot: {comparison.plot}")
    if mixed := mixed_machines(records):
        found.append(f"warning: the runs differ in {'; '.join(mixed)}; --overwrite does all of them again")
    return found


def about_times(timed: Sequence[TimingRecord], setup: Setup) -> list[str]:
    """The notes on the tables of times."""
    first = timed[0]
    made = [record.result.rounds for record in timed]
    saved = [
        "ms per step: LayerNorm's median step, less the time that is saved",
        "time saved: in percent of LayerNorm's step; the median over the rounds"
        + (" and its 95 % confidence interval" if max(made) >= FEWEST else "")
        + (f"; an interval needs {FEWEST} rounds" if min(made) < FEWEST else ""),
    ]
    if "layer" not in first.identity.norms:
        saved = ["ms per step: the median; time saved: LayerNorm was not timed, so nothing is compared with it"]
    rounds = f"{made[0]}" if len(set(made)) == 1 else ", ".join(map(str, made))
    memory = max((record.result.memory or 0 for record in timed), default=0)
    loops = [norm for norm in first.norm_sources or {} if any(_fuses_recurrences(record) for record in timed)]
    return [
        *(
            f"{norms.label(norm)}: its recurrences are loops in every table; LayerNorm and RMSNorm have a GRU or LSTM "
            "in one kernel, except unfused, so that table compares like with like"
            for norm in loops
        ),
        f"time: {rounds} rounds; a round takes one training step of every normaliser on the same batch",
        *saved,
        "in norms: the part of a step that its normalisers take, by leaving them out and by torch.profiler",
        "peak: the memory of all tensors at the fullest moment of a step"
        + (f"; of all networks together: {memory / 2**30:.1f} GiB" if memory else ""),
        f"timed on: {first.machine.processor(setup.device)}, {count(first.machine.torch_threads, 'thread')}, "
        f"torch {first.machine.versions['torch']}, {first.finished}",
    ]


def _fuses_recurrences(record: TimingRecord) -> bool:
    """Whether the built-in norms had a GRU or LSTM in one kernel, which no norm of the user's own can have."""
    identity = record.identity
    biases = identity.biases or identity.model.get("biases", "alike")
    return record.task in norms.RECURRENT and identity.kernels != "unfused" and biases == "alike"


def _runs(comparison: Comparison) -> dict[str, list[RunRecord]]:
    runs: dict[str, list[RunRecord]] = {each.norm: [] for each in comparison.quality}
    for run in runs_of(comparison.records):
        runs[run.identity.norm].append(run)
    return runs


def _against_layer_norm(comparison: Comparison) -> list[str]:
    """What the runs show of RMSNorm, and every norm's difference from LayerNorm in the headline metric."""
    runs, metric = _runs(comparison), comparison.task.metrics[0]
    layer = runs.pop("layer", None)
    if layer is None or not runs:
        return []
    found = {norm: paired.difference(metric, of_norm, layer) for norm, of_norm in runs.items()}
    listed = [f"{norms.label(norm)} {' '.join(each.texts()).strip()}" for norm, each in found.items() if each]
    lines = [paired.said(metric, "rms", runs["rms"], "layer", layer)] if "rms" in runs else []
    if listed:
        interval = " and 95 % confidence interval" if any(each and each.interval for each in found.values()) else ""
        label = metric.label.replace("\n", " ")
        lines.append(f"difference from LayerNorm in {label}, paired by seed, mean{interval}: {', '.join(listed)}")
    return lines


def _about_quality(comparison: Comparison) -> list[str]:
    recipe, headline = comparison.task.recipe, comparison.task.metrics[0]
    seeds = comparison.quality[0].runs
    rates = {norms.label(each.norm): recipe.learning_rate(each.norm) for each in comparison.quality}
    if len(set(rates.values())) == 1:
        rate = f"{next(iter(rates.values())):g} for all"
    else:
        rate = ", ".join(f"{norm} {value:g}" for norm, value in rates.items())
    found = [
        f"quality: mean{' ± standard deviation' if seeds > 1 else ''} over {count(seeds, 'seed')}, "
        f"trained with the {comparison.setup.kernels} kernels",
        f"learning rate: {rate}",
    ]
    if "prms" in (each.norm for each in comparison.quality):
        found.append(f"pRMSNorm: the RMS is taken of the first {100 * recipe.p:g} % of the elements")
    for norm in (each.norm for each in comparison.quality):
        if source := norms.own_source(norm):
            found.append(f"{norms.label(norm)}: {source}, the same module with all kernels")
    if references := comparison.task.references:
        measured = headline.label.replace("\n", " ")
        listed = ", ".join(f"{name} {value:{headline.form}}" for name, value in references.items())
        found.append(f"without learning: {listed} ({measured})")
    return found


_OF_RECORDS = ("subwords sha256", "BLEU", "chrF")
"""Details that the records and --json have: hashes, and sacrebleu's signatures."""


def about_data(task: Task) -> str:
    source = task.source
    details = [f"{key} {in_words(value)}" for key, value in source.details.items() if key not in _OF_RECORDS]
    return f"data: {', '.join([source.name, *details])}"


def in_words(value: Any) -> str:
    """A value of a source's details: a number, a text, or several of them by name."""
    if isinstance(value, dict):
        return f"({', '.join(f'{key} {in_words(inner)}' for key, inner in value.items())})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _differences(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """Norm -> metric -> mean, interval and seeds of its difference from LayerNorm."""
    runs = _runs(comparison)
    layer = runs.pop("layer", [])
    found: dict[str, dict[str, Any]] = {}
    for norm, of_norm in runs.items():
        for metric in comparison.task.metrics:
            if each := paired.difference(metric, of_norm, layer):
                of_metric = {"mean": each.mean, "interval": each.interval, "seeds": each.seeds}
                found.setdefault(norm, {})[metric.key] = of_metric
    return found


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The same for a program."""
    task = comparison.task
    return {
        "task": task.name,
        "setup": asdict(comparison.setup),
        "recipe": asdict(task.recipe),
        "source": asdict(task.source),
        "references": dict(task.references),
        "paper": asdict(PUBLISHED[task.name]) if task.name in PUBLISHED else None,
        "paper_data": _official(task),
        "machine": asdict(comparison.records[0].machine),
        "quality": [asdict(each) for each in comparison.quality],
        "difference from layer": _differences(comparison),
        "time": {kernels: [asdict(each) for each in rows] for kernels, rows in comparison.times.items()},
        "notes": notes(comparison),
        "plot": comparison.plot,
    }
