"""What the user of ``rmsnorm compare`` sees: progress while it runs, then one table and a plot."""

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from rmsnorm.errors import UserError
from rmsnorm.experiments import recipes
from rmsnorm.experiments.compare import Job, Row, jobs, mixed_machines, row, run_jobs
from rmsnorm.experiments.plot import draw
from rmsnorm.experiments.recipes import LABELS, Settings
from rmsnorm.experiments.runs import Record, RunStore
from rmsnorm.experiments.tasks import language
from rmsnorm.experiments.tasks.language import Text
from rmsnorm.experiments.timing import Spread


class ProgressReport:
    """A bar on a terminal; a line for each finished job everywhere, and nothing else where there is no terminal."""

    def __init__(self, console: Console, planned: list[Job]) -> None:
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
        self.task: TaskID = self.bars.add_task("", total=self.total)

    def begin(self, job: Job) -> None:
        self.bars.update(self.task, description=job.title)

    def advance(self, job: Job, share: float, bits: float | None) -> None:
        loss = "" if bits is None else f": {bits:5.2f} bits"
        self.bars.update(self.task, completed=self.ended + share, description=job.title + loss)

    def end(self, job: Job, record: Record, kept: bool) -> None:
        self.ended += 1
        self.kept += kept
        self.bars.update(self.task, completed=self.ended)
        if not kept:
            self.console.print(f"{self.ended:>3} of {self.total}  {job.title}: {_outcome(record)}", highlight=False)


def _outcome(record: Record) -> str:
    result = record["result"]
    if record["kind"] == "timing":
        return f"{len(result['milliseconds']['none'])} rounds"
    if result["status"] == "diverged":
        return f"diverged at step {result['diverged_at']}"
    return f"{result['held_out_bits']:.3f} bits per character, {result['seconds']:.1f} s"


def compare_language(args: argparse.Namespace, norms: list[str]) -> int:
    """The whole command; returns the exit status."""
    _check_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    settings = recipes.language(
        steps=args.steps, kernels=args.kernels, device=args.device, precision=args.precision, qk_norm=args.qk_norm
    )
    progress_console = Console(stderr=True)
    text = language.load(Path(args.data) if args.data else None, settings.model.context, settings.train.batch)
    planned = jobs(settings, norms, args.seeds, text)
    replaced = [job.file_name for job in planned] if args.overwrite else []
    store = RunStore(Path(args.out), replaced)

    progress_console.print(_heading(settings, text), highlight=False, soft_wrap=True)
    progress = ProgressReport(progress_console, planned)
    records: list[Record] = []
    try:
        with progress.bars:
            for record in run_jobs(planned, settings, text, store, args.overwrite, progress):
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
    plot = Path(args.out) / "language.png"
    draw(plot, _heading(settings, text), rows, runs, text.unigram_bits)
    if args.json:
        print(json.dumps(_as_json(settings, text, records, rows, plot), indent=2, allow_nan=False))
    else:
        _print_table(settings, text, records, rows, plot)
    return 0


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


def _heading(settings: Settings, text: Text) -> str:
    source = f"stand-in: {text.source.name}" if text.source.stand_in else text.source.name
    return f"compare language · {source} · {_kernels(settings)} · {settings.train.steps} steps"


def _kernels(settings: Settings) -> str:
    if settings.kernels == "torch":
        return "torch's kernels"
    if settings.device.partition(":")[0] != "cpu":
        return "rmsnorm's differentiable expression (its kernels run on the CPU)"
    return "rmsnorm's kernels"


def _interrupted(planned: list[Job], finished: int, args: argparse.Namespace) -> str:
    titles = "; ".join(job.title for job in planned[:finished]) or "nothing"
    without = " without --overwrite" if args.overwrite else ""
    return (
        f"interrupted: {finished} of {len(planned)} finished and kept in {args.out} ({titles}). "
        f"The same command{without} goes on from there."
    )


def _print_table(settings: Settings, text: Text, records: list[Record], rows: list[Row], plot: Path) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file or a pipe has no width to obey
    console.print(_heading(settings, text), style="bold", highlight=False, soft_wrap=True)
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)  # narrow enough for 80 columns
    headings = (
        "held-out bits\nper character",
        "ms a\nstep",
        "× LayerNorm's step\n[95 % CI]",
        "norms' share, %\n[95 % CI]",
    )
    table.add_column("norm", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for each in rows:
        label = LABELS[each.norm] + (" *" if (settings.kernels, each.norm) == ("torch", "prms") else "")
        table.add_row(
            label,
            bits_cell(each),
            f"{each.milliseconds:.1f}",
            "1" if each.to_layer is None else _interval(each.to_layer, 1, ".3f"),
            "–" if each.norm_share is None else _interval(each.norm_share, 100, ".1f"),
        )
    console.print(table, highlight=False)
    for note in _notes(settings, text, records, rows, plot):
        console.print(note, highlight=False, soft_wrap=True)


def bits_cell(each: Row) -> str:
    """'2.345 ± 0.012'; never a mere number where a run diverged."""
    if each.bits_mean is None:
        return "diverged" if each.runs == 1 else f"diverged ({each.diverged} of {each.runs})"
    spread = "" if each.bits_sd is None else f" ± {each.bits_sd:.3f}"
    diverged = f"\n{each.diverged} of {each.runs} diverged" if each.diverged else ""
    return f"{each.bits_mean:.3f}{spread}{diverged}"


def _interval(spread: Spread, factor: float, form: str) -> str:
    low, high = spread.interval
    return f"{factor * spread.median:{form}} [{factor * low:{form}}, {factor * high:{form}}]"


def _notes(settings: Settings, text: Text, records: list[Record], rows: list[Row], plot: Path) -> list[str]:
    train, source, machine = settings.train, text.source, records[0]["machine"]
    seeds, torch_version = rows[0].runs, machine["versions"]["torch"]
    rounds = len(records[0]["result"]["milliseconds"]["none"])
    processor = machine["cpu"] if settings.device == "cpu" else f"{settings.device}, {machine['gpu'] or ''}"
    notes = [
        f"quality: mean{' ± standard deviation' if seeds > 1 else ''} over {seeds} seed{'s' if seeds > 1 else ''}, "
        f"learning rate {train.learning_rate:g} for all, pRMSNorm of the first {100 * recipes.P:g} %; "
        f"guessing gives {math.log2(text.vocabulary):.2f} bits, "
        f"character frequencies alone {text.unigram_bits:.2f}",
        f"text: {source.name}, {source.files} file{'s' if source.files > 1 else ''}, {source.characters:,} characters, "
        f"held out {source.split}, sha256 {source.sha256[:12]}",
        f"time: {rounds} rounds of one step each in turn, paired (ms: LayerNorm's median times the ratio), "
        f"recorded {records[0]['finished']}; {processor}, {machine['torch_threads']} threads, torch {torch_version}",
        f"records and plot: {plot.parent}, {plot}",
    ]
    if settings.kernels == "torch" and any(each.norm == "prms" for each in rows):
        notes.append(
            "* torch has no kernel for pRMSNorm; it is written in framework operations, and its time is theirs"
        )
    if mixed := mixed_machines(records):
        notes.append(f"warning: the runs differ in {'; '.join(mixed)}; --overwrite does all of them again")
    return notes


def _as_json(settings: Settings, text: Text, records: list[Record], rows: list[Row], plot: Path) -> dict[str, Any]:
    return {
        "settings": asdict(settings),
        "text": asdict(text.source),
        "unigram_bits": text.unigram_bits,
        "machine": records[0]["machine"],
        "rows": [asdict(each) for each in rows],
        "notes": _notes(settings, text, records, rows, plot),
        "plot": str(plot),
    }
