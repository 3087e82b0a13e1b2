"""A run over many cases: it shows progress, hands over each finished record, and ends in order at Ctrl-C."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rmsnorm.timing import Plan
from rmsnorm_lab.bench.cases import Case
from rmsnorm_lab.bench.provider import Provider
from rmsnorm_lab.bench.records import Record
from rmsnorm_lab.bench.runner import run_case, seconds


def measure_all(
    selected: Sequence[Case],
    installed: Sequence[Provider],
    plan: Plan,
    console: Console,
    keep: Callable[[Record], None],
) -> tuple[list[Record], bool]:
    """Measure the cases one by one. Returns the records that ``keep`` was given, and whether they are of all cases.

    An interruption loses the unfinished case only.
    """
    done: list[Record] = []
    costs = [seconds(case, installed, plan) for case in selected]
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    # Refreshed here, between samples: rich's own thread would run during them.
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        task = progress.add_task("", total=sum(costs))

        def tell(what: str) -> None:
            place = f"{len(done) + 1}/{len(selected)} {selected[len(done)]}"
            progress.update(task, description=f"{place}: {what}", refresh=True)

        try:
            for case, cost in zip(selected, costs, strict=True):
                record = run_case(case, installed, plan, tell)
                with _undisturbed():
                    done.append(record)
                    keep(record)
                progress.update(task, advance=cost, refresh=True)
        except KeyboardInterrupt:
            return done, False
    return done, True


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C waits for the end of the block, so that what is shown is also kept."""
    pressed = []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt
