"""What the user sees while work goes on: a bar on a terminal, and a line for each finished job everywhere."""

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rmsnorm.experiments.jobs import Job
from rmsnorm.experiments.runs import Record


class ProgressReport:
    """The jobs' watcher; a context manager that shows the bar."""

    def __init__(self, console: Console, planned: Sequence[Job]) -> None:
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
        self.title = ""

    def __enter__(self) -> "ProgressReport":
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def begin(self, job: Job) -> None:
        self.title = job.title
        self.bars.update(self.bar, description=job.title)

    def advance(self, share: float, loss: float | None) -> None:
        shown = "" if loss is None else f": loss {loss:6.3f}"
        self.bars.update(self.bar, completed=self.ended + share, description=self.title + shown)

    def end(self, job: Job, record: Record, kept: bool) -> None:
        self.ended += 1
        self.kept += kept
        self.bars.update(self.bar, completed=self.ended)
        if not kept:
            self.say(f"{self.ended:>3} of {self.total}  {job.title}: {outcome(job, record)}")

    def say(self, message: str) -> None:
        self.console.print(message, highlight=False, markup=False, soft_wrap=True)


def outcome(job: Job, record: Record) -> str:
    """One line of what a record says."""
    result = record["result"]
    if job.kind == "timing":
        return f"{len(result['milliseconds']['none'])} rounds"
    if result["status"] == "diverged":
        return f"diverged at step {result['diverged_at']}"
    metric = job.task.metrics[0]
    label = metric.label.replace("\n", " ")
    return f"{result['quality'][metric.key]:{metric.form}} {label}, {result['seconds']:.1f} s in steps"
