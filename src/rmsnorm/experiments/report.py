"""What the user of ``rmsnorm compare`` sees: progress while it runs, then one table and a plot."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from rmsnorm.errors import UserError
from rmsnorm.experiments import tasks
from rmsnorm.experiments.compare import Job, Row, jobs, mixed_machines, row, run_jobs
from rmsnorm.experiments.plot import draw
from rmsnorm.experiments.recipes.common import LABELS, Recipe
from rmsnorm.experiments.runs import Record, RunStore
from rmsnorm.experiments.task import Metric, Task
from rmsnorm.experiments.timing import Spread
from rmsnorm.experiments.train import Setup


class ProgressReport:
    """A bar on a terminal; a line for each finished job everywhere, and nothing else where there is no terminal."""

    def __init__(self, console: Console, task: Task, planned: list[Job]) -> None:
        self.metric = task.metrics[0]
        self.console, self.total, self.ended, self.kept = console, len(planned), 0, 0
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.bar: TaskID = self.bars.add_task("", total=self.total)

    def begin(self, job: Job) -> None:
        self.bars.update(self.bar, description=job.title)

    def advance(self, job: Job, share: float, loss: float | None) -> None:
        shown = "" if loss is None else f": loss {loss:6.3f}"
        self.bars.update(self.bar, completed=self.ended + share, description=job.title + shown)

    def end(self, job: Job, record: Record, kept: bool) -> None:
        self.ended += 1
        self.kept += kept
        self.bars.update(self.bar, completed=self.ended)
        if not kept:
            self.console.print(
                f"{self.ended:>3} of {self.total}  {job.title}: {_outcome(record, self.metric)}", highlight=False
            )


def _outcome(record: Record, metric: Metric) -> str:
    result = record["result"]
    if record["kind"] == "timing":
        return f"{len(result['milliseconds']['none'])} rounds"
    if result["status"] == "diverged":
        return f"diverged at step {result['diverged_at']}"
    label = metric.label.replace("\n", " ")
    return f"{result['quality'][metric.key]:{metric.form}} {label}, {result['seconds']:.1f} s"


def compare(args: argparse.Namespace, recipe: Recipe) -> int:
    """The whole command; returns the exit status."""
    _check_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    setup = Setup(kernels=args.kernels, device=args.device, precision=args.precision)
    progress_console = Console(stderr=True)
    task = tasks.load(args.task, Path(args.data) if args.data else None, recipe)
    norms = _norms(args.norm, task)
    planned = jobs(task, setup, norms, args.seeds)
    replaced = [job.file_name for job in planned] if args.overwrite else []
    store = RunStore(Path(args.out), replaced)

    progress_console.print(_heading(task, setup), highlight=False, soft_wrap=True)
    progress = ProgressReport(progress_console, task, planned)
    records: list[Record] = []
    try:
        with progress.bars:
            for record in run_jobs(planned, task, setup, store, args.overwrite, progress):
                records.append(record)
    except KeyboardInterrupt:
        progress_console.print(_interrupted(planned, len(records), args), highlight=False, soft_wrap=True)
        return 130

    if progress.kept:
        progress_console.print(
            f"{progress.kept} of {len(planned)} were recorded in {args.out} already (--overwrite does them again)",
            highlight=False,
            soft_wrap=True,
        )
    milliseconds = records[0]["result"]["milliseconds"]
    runs = {norm: [record for record in records[1:] if record["identity"]["norm"] == norm] for norm in norms}
    rows = [row(norm, runs[norm], milliseconds) for norm in norms]
    plot = Path(args.out) / f"{task.name}.png"
    draw(plot, _heading(task, setup), task, rows, runs)
    if args.json:
        print(json.dumps(_as_json(task, setup, records, rows, plot), indent=2, allow_nan=False))
    else:
        _print_table(task, setup, records, rows, plot)
    return 0


def _norms(names: list[str] | None, task: Task) -> list[str]:
    """The chosen normalisers in the order of the table; 'rms layer' and 'rms,layer' are the same."""
    chosen = {name for part in names or task.default_norms for name in part.split(",") if name}
    allowed = ", ".join(task.norms)
    if unknown := sorted(chosen - set(task.norms)):
        raise UserError(f"--norm must name some of {allowed} for {task.name}; got {unknown[0]!r}. Pass one of these.")
    if not chosen:
        raise UserError(f"--norm must name some of {allowed} for {task.name}; got none. Pass one of these.")
    return [name for name in task.norms if name in chosen]


def _check_device(name: str) -> None:
    """Put one number on it: the surest sign that torch can use a device."""
    try:
        torch.zeros(1, device=name) + 1
        if torch.device(name).type == "meta":
            raise RuntimeError("it holds no numbers")
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises each of these for one
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"--device must be one that this torch can use; got {name!r}: {reason}. Pass --device cpu."
        ) from None


def _heading(task: Task, setup: Setup) -> str:
    source = f"stand-in: {task.source.name}" if task.source.stand_in else task.source.name
    return f"compare {task.name} · {source} · {_kernels(setup)} · {task.recipe.train.steps} steps"


def _kernels(setup: Setup) -> str:
    if setup.kernels == "unfused":
        return "framework operators"
    ours = "rmsnorm's kernels"
    if setup.device.partition(":")[0] != "cpu":
        ours = "rmsnorm's differentiable expression (its kernels run on the CPU)"
    return ours if setup.kernels == "rmsnorm" else f"torch's LayerNorm, {ours} for the others"


def _interrupted(planned: list[Job], finished: int, args: argparse.Namespace) -> str:
    titles = "; ".join(job.title for job in planned[:finished]) or "nothing"
    without = " without --overwrite" if args.overwrite else ""
    return (
        f"interrupted: {finished} of {len(planned)} finished and kept in {args.out} ({titles}). "
        f"The same command{without} goes on from there."
    )


def _print_table(task: Task, setup: Setup, records: list[Record], rows: list[Row], plot: Path) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file or a pipe has no width to obey
    console.print(_heading(task, setup), style="bold", highlight=False, soft_wrap=True)
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)  # narrow enough for 80 columns
    headings = (
        *(metric.label for metric in task.metrics),
        "ms a\nstep",
        "× LayerNorm's step\n[95 % CI]",
        "norms' share, %\n[95 % CI]",
    )
    table.add_column("norm", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for each in rows:
        table.add_row(
            LABELS[each.norm],
            *(quality_cell(each, metric) for metric in task.metrics),
            f"{each.milliseconds:.1f}",
            "1" if each.to_layer is None else _interval(each.to_layer, 1, ".3f"),
            "–" if each.norm_share is None else _interval(each.norm_share, 100, ".1f"),
        )
    console.print(table, highlight=False)
    for note in _notes(task, setup, records, rows, plot):
        console.print(note, highlight=False, soft_wrap=True)


def quality_cell(each: Row, metric: Metric) -> str:
    """'2.345 ± 0.012'; never a mere number where a run diverged."""
    if metric.key not in each.quality:
        return "diverged" if each.runs == 1 else f"diverged ({each.diverged} of {each.runs})"
    quality = each.quality[metric.key]
    spread = "" if quality.sd is None else f" ± {quality.sd:{metric.form}}"
    diverged = f"\n{each.diverged} of {each.runs} diverged" if each.diverged else ""
    return f"{quality.mean:{metric.form}}{spread}{diverged}"


def _interval(spread: Spread, factor: float, form: str) -> str:
    low, high = spread.interval
    return f"{factor * spread.median:{form}} [{factor * low:{form}}, {factor * high:{form}}]"


def _notes(task: Task, setup: Setup, records: list[Record], rows: list[Row], plot: Path) -> list[str]:
    recipe, source, machine = task.recipe, task.source, records[0]["machine"]
    seeds, torch_version = rows[0].runs, machine["versions"]["torch"]
    rounds = len(records[0]["result"]["milliseconds"]["none"])
    processor = machine["cpu"] if setup.device == "cpu" else f"{setup.device}, {machine['gpu'] or ''}"
    rates = {recipe.learning_rate(each.norm) for each in rows}
    rate = f"learning rate {rates.pop():g} for all" if len(rates) == 1 else "learning rates as the recipe has them"
    quality = [
        f"quality: mean{' ± standard deviation' if seeds > 1 else ''} over {seeds} seed{'s' if seeds > 1 else ''}, "
        f"{rate}, pRMSNorm of the first {100 * recipe.p:g} %"
    ]
    headline = task.metrics[0]
    quality += [f"{name} gives {value:{headline.form}}" for name, value in task.references.items()]
    details = [
        f"{key} {value:,}" if isinstance(value, int) else f"{key} {value}" for key, value in source.details.items()
    ]
    notes = [
        "; ".join(quality),
        f"data: {', '.join([source.name, *details])}, sha256 {source.sha256[:12]}",
        f"time: {rounds} rounds of one step each in turn, paired (ms: LayerNorm's median times the ratio), "
        f"recorded {records[0]['finished']}; {processor}, {machine['torch_threads']} threads, torch {torch_version}",
        f"records and plot: {plot.parent}, {plot}",
    ]
    if mixed := mixed_machines(records):
        notes.append(f"warning: the runs differ in {'; '.join(mixed)}; --overwrite does all of them again")
    return notes


def _as_json(task: Task, setup: Setup, records: list[Record], rows: list[Row], plot: Path) -> dict[str, Any]:
    return {
        "setup": asdict(setup),
        "recipe": asdict(task.recipe),
        "source": asdict(task.source),
        "references": dict(task.references),
        "machine": records[0]["machine"],
        "rows": [asdict(each) for each in rows],
        "notes": _notes(task, setup, records, rows, plot),
        "plot": str(plot),
    }
