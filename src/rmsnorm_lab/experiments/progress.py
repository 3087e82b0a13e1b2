"""Progress: a bar on a terminal, lines elsewhere, and a line for each finished job."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from rmsnorm_lab.experiments.jobs import Job, TimingJob
from rmsnorm_lab.experiments.pace import Pace
from rmsnorm_lab.experiments.record import Record, RunRecord
from rmsnorm_lab.table import count

LINE_EVERY = 30.0
"""Seconds between two lines if the output is not a terminal. A run that has lasted longer gets one at each evaluation
too."""


class ProgressReport:
    """The jobs' watcher; a context manager that shows the bar, or the lines.

    Arguments:
        evaluations: a line at every evaluation, on a terminal too.
        every: seconds between the lines.
    """

    def __init__(self, console: Console, total: int, *, evaluations: bool = False, every: float = LINE_EVERY) -> None:
        self.console, self.total, self.ended, self.kept = console, total, 0, 0
        self._evaluations, self._every = evaluations, every
        self._pace = Pace()
        self._job: Job | None = None
        self._doing, self._loss, self._figures = "", "", ""
        self._in_steps, self._steps, self._last_step = 0.0, 0, 0.0
        self._last_line = self._last_shown = time.monotonic()
        self._over = threading.Event()
        self._bars = Progress(
            BarColumn(bar_width=12),
            TimeElapsedColumn(),
            TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._bar: TaskID = self._bars.add_task("", total=1.0)

    def __enter__(self) -> "ProgressReport":
        self._bars.start()
        if not self.console.is_terminal:
            threading.Thread(target=self._lines, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._bars.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While something else writes to the terminal."""
        self._bars.stop()
        yield
        self._bars.start()

    def plan(self, todo: Sequence[Job]) -> None:
        self._pace = Pace(todo)

    def begin(self, job: Job) -> None:
        self._pace.begin(job)
        self._job, self._doing, self._loss, self._figures = job, "", "", ""
        self._in_steps, self._steps, self._last_step = 0.0, 0, time.monotonic()
        self._show()

    def advance(self, done: int, taken: int = 1, loss: float | None = None) -> None:
        now = time.monotonic()
        self._in_steps, self._steps, self._last_step = self._in_steps + now - self._last_step, self._steps + taken, now
        self._pace.advance(done, taken)
        self._doing, self._loss = "", "" if loss is None else f"loss {loss:.3f}"
        self._show(at_once=False)

    def doing(self, what: str) -> None:
        self._doing = what
        self._show()

    def evaluated(self, figures: dict[str, float]) -> None:
        assert self._job is not None
        metric = self._job.task.metrics[0]
        self._figures = f"validation: {metric.key} {figures[metric.key]:{metric.form}}, loss {figures['loss']:.3f}"
        self._doing, self._last_step = "", time.monotonic()
        if self._evaluations or (not self.console.is_terminal and self._pace.elapsed() > self._every):
            self._line()
        self._show()

    def end(self, job: Job, record: Record, kept: bool) -> None:
        self._pace.end()
        self._job = None
        self.ended += 1
        self.kept += kept
        if not kept:
            self.say(f"{self._number(self.ended)}{job.title}: {outcome(job, record)}")

    def say(self, message: str) -> None:
        self._last_line = time.monotonic()
        self.console.print(message, highlight=False, markup=False, soft_wrap=True)

    def _lines(self) -> None:
        """In a thread of its own: a step, an evaluation or a profile may take minutes."""
        while not self._over.wait(max(self._last_line + self._every - time.monotonic(), 0.01)):
            if self._job is not None and time.monotonic() - self._last_line >= self._every:
                self._line()
            elif self._job is None:
                self._last_line = time.monotonic()

    def _line(self) -> None:
        if text := self._text():
            self.say(self._number(self.ended + 1) + text)

    def _number(self, job: int) -> str:
        return f"{job:>3} of {self.total}  " if self.total > 1 else ""

    def _show(self, at_once: bool = True) -> None:
        now = time.monotonic()
        if not self.console.is_terminal or not (at_once or now > self._last_shown + 0.1):
            return
        self._last_shown = now
        left = self._pace.left()
        elapsed = self._bars.tasks[0].elapsed or 0.0
        share = 0.0 if left is None or elapsed + left == 0 else elapsed / (elapsed + left)
        self._bars.update(self._bar, completed=share, description=self._text())

    def _text(self) -> str:
        """'RMSNorm, seed 0: step 120 of 280 · 31.2 steps/s · 0:05 left · loss 2.531 · validation: bits 2.497, …'."""
        job = self._job
        if job is None:
            return ""
        speed = f"{_three(self._steps / self._in_steps)} steps/s" if self._steps and self._in_steps else ""
        left = self._pace.left()
        ends = "" if left is None else f"{duration(left)} left"
        done = f"step {self._pace.done:,} of {job.units:,}"
        if isinstance(job, TimingJob) and job.within_seconds:
            done, speed = f"{100 * self._pace.done // job.units} %", ""
        return f"{job.title}: " + " · ".join(filter(None, [done, speed, ends, self._doing, self._loss, self._figures]))


def duration(seconds: float) -> str:
    """'0:07', '12:34', '3:05:00', '2 d 3:05:00'."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    clock = f"{hour}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
    return f"{days} d {clock}" if days else clock


def _three(value: float) -> str:
    """Three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def outcome(job: Job, record: Record) -> str:
    """One line from a record."""
    if not isinstance(record, RunRecord):
        memory = record.result.memory
        return count(record.result.rounds, "round") + (
            "" if memory is None else f", {memory / 2**30:.1f} GiB of tensors"
        )
    result = record.result
    if result.quality is None:
        return f"diverged at step {result.diverged_at}"
    metric = job.task.metrics[0]
    label = metric.label.replace("\n", " ")
    return f"{result.quality[metric.key]:{metric.form}} {label}, {result.seconds:.1f} s in steps"
