"""What a profile found: a row for each distinct norm, the model's totals, and a table of both."""

from collections.abc import Sequence
from dataclasses import dataclass

from rmsnorm.timing import Spread
from rmsnorm.torch.columns import columns


@dataclass(frozen=True)
class NormCost:
    """The norms of a model that are of one class and were called alike."""

    cls: str
    n: int
    """The normalised elements of a row."""
    rows: tuple[int, ...]
    """The numbers of rows that calls had, ascending."""
    dtype: str
    """Of the input; several are separated by spaces."""
    modules: int
    calls: int
    """A step."""
    share: Spread | None
    """Of the step, by leaving these norms out; None: that was not possible, see the notes."""
    us: Spread | None
    """Microseconds a call, backward included where the step has it."""
    served_by: str | None
    """The call that :func:`swap_norms` puts in; None if it leaves these norms."""
    why: str | None
    """Why it leaves them; None if it does not."""


@dataclass(frozen=True)
class NormProfile:
    """What the norms of a model cost in a step; ``print`` shows it as a table."""

    norms: list[NormCost]
    step_ms: float
    """The model as it is, median."""
    cost: Spread | None
    """The share of the step that goes when all norms are left out: no faster norm can save more."""
    swap: Spread | None
    """The share of the step that :func:`swap_norms` saves; negative where it costs."""
    accelerate: Spread | None
    """The share that :func:`accelerate` saves; None if the step calls no ``F.rms_norm``."""
    notes: list[str]
    """What was not measured, and why."""
    threads: int
    rounds: int
    times_ns: dict[str, list[float]]
    """A step's time in each round, by variant: ``model``, ``swap_norms``, ``accelerate``, ``no norms``, and
    ``without`` and a class."""

    def __str__(self) -> str:
        head = ("norm", "n", "rows", "dtype", "modules", "calls", "µs a call", "% of the step", "served by, or why not")
        lines = [
            (
                row.cls,
                str(row.n),
                _range(row.rows),
                row.dtype,
                str(row.modules),
                str(row.calls),
                _interval(row.us, 1),
                _interval(row.share, 100),
                row.served_by or f"left: {row.why}",
            )
            for row in self.norms
        ]
        totals = [
            ("all norms", self.cost, "the bound: no faster norm saves more"),
            ("swap_norms saves", self.swap, ""),
            ("accelerate saves", self.accelerate, ""),
        ]
        found = [(name, f"{_interval(spread, 100)} %", text) for name, spread, text in totals if spread]
        step = f"a step takes {self.step_ms:.3g} ms: {self.rounds} rounds, threads: {self.threads}"
        return "\n".join([columns([head, *lines], (1, 2, 4, 5, 6, 7)), "", columns(found), step, *self.notes])

    def __repr__(self) -> str:
        return f"<profile_norms: {len(self.norms)} distinct norms, {self.rounds} rounds; print it for the table>"


def _range(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}–{numbers[-1]}"


def _interval(spread: Spread | None, scale: float) -> str:
    """``16.7 [12.1, 22.0]``: median and 95 % interval."""
    if spread is None:
        return "–"
    text = f"{scale * spread.median:.1f}"
    if spread.interval is None:
        return text
    low, high = spread.interval
    return f"{text} [{scale * low:.1f}, {scale * high:.1f}]"
