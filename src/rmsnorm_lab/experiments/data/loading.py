"""Progress shown while data are prepared: a bar on a terminal, else a line every 30 seconds."""

import threading
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

SECONDS = 30
_OFTEN = 1000
"""Items between two updates of the bar. An update can cost more than an item."""
T = TypeVar("T")


class Loading:
    """Shows which step of preparing ``name`` is running, and how far it is; a context manager.

    A thread prints the lines, because some steps are single calls of a library.
    """

    def __init__(self, name: str) -> None:
        self.name, self.console = name, Console(stderr=True)
        self._step, self._done, self._total = "", 0, 0
        self._started, self._stop = time.monotonic(), threading.Event()
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._bar = self._bars.add_task("")

    def __enter__(self) -> "Loading":
        self._bars.start()
        self._stop.clear()
        if not self.console.is_terminal:
            threading.Thread(target=self._lines, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._bars.stop()

    def step(self, what: str, total: int = 0) -> None:
        """Begin a new step of ``total`` items (0: not known)."""
        self._step, self._done, self._total = what, 0, total
        self._bars.update(self._bar, description=f"{self.name}: {what}", completed=0, total=total or None)

    def over(self, what: str, items: Iterable[T], total: int = 0) -> Iterator[T]:
        """Begin a new step; yields its items and counts them."""
        self.step(what, total)
        for item in items:
            yield item
            self.advance(1)

    def advance(self, count: int) -> None:
        """Count ``count`` more items of the step as done."""
        self._done += count
        if self._done % _OFTEN < count:
            self._bars.update(self._bar, completed=self._done)

    def say(self, message: str) -> None:
        """Print a line to standard error."""
        self.console.print(message, highlight=False, markup=False, soft_wrap=True)

    @property
    def seconds(self) -> float:
        """Seconds since the object was made."""
        return time.monotonic() - self._started

    def _lines(self) -> None:
        while not self._stop.wait(SECONDS):
            minutes, seconds = divmod(int(self.seconds), 60)
            far = f"{self._done:,} of {self._total:,}" if self._total else f"{self._done:,}" if self._done else ""
            self.say(f"{self.name}: {self._step} {far}".rstrip() + f" · {minutes}:{seconds:02}")
