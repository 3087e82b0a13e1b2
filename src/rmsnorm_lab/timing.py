"""Interleaved timing, and ratios of times that were taken in the same round.

Every round takes one sample of each call, in a new random order. What slows the machine for a while (another program, a
warm processor) slows all calls of a round by the same factor. So ratios are taken within rounds, and their median over
the rounds is reported. The order is shuffled and not rotated: in a rotation each call always runs after the same other
one, and finds that one's caches and threads.
"""

import math
import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any, TypeAlias

Call: TypeAlias = Callable[[], Any]


def wall_clock(call: Call, repeats: int = 1) -> float:
    """Nanoseconds a call, over ``repeats`` calls in a bare loop (about 10 ns of it is the loop's own)."""
    turns = range(repeats)
    start = perf_counter_ns()
    for _ in turns:
        call()
    return (perf_counter_ns() - start) / repeats


def interleave(
    samples: Mapping[str, Callable[[], float]],
    rounds: Iterable[Any],
    *,
    failed: Callable[[str, Exception], None] | None = None,
    seed: int = 0,
) -> dict[str, list[float]]:
    """One sample of each name per round; figures at the same index are of the same round.

    Args:
        samples: name -> a function that takes one sample.
        rounds: yields once per round. What it does in between is outside of every sample.
        failed: is given the name and the error of a sample that fails; the others go on without it. Without this, the
            error is raised.
        seed: of the order within the rounds.
    """
    times: dict[str, list[float]] = {name: [] for name in samples}
    shuffle = random.Random(seed).shuffle
    for _ in rounds:
        order = list(times)
        shuffle(order)
        for name in order:
            try:
                times[name].append(samples[name]())
            except Exception as error:
                if failed is None:
                    raise
                del times[name]
                failed(name, error)
        if not times:
            break
    return times


def quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile (linear interpolation between order statistics)."""
    if len(samples) == 1:
        return samples[0], samples[0], samples[0]
    first, median, third = statistics.quantiles(samples, n=4, method="inclusive")
    return first, median, third


def paired_ratios(of: Sequence[float], to: Sequence[float]) -> list[float]:
    """The ratio of two calls' times in each round. Both series must come from the same rounds."""
    return [a / b for a, b in zip(of, to, strict=True)]


FEWEST = 6
"""Fewer values have no 95 % confidence interval: even the smallest and the largest of five have the median between them
in only 94 % of cases."""


@dataclass(frozen=True)
class Spread:
    """A median and its 95 % confidence interval; None for fewer than ``FEWEST`` values."""

    median: float
    interval: tuple[float, float] | None


def spread(values: Sequence[float]) -> Spread:
    """The median of ``values`` and how sure it is.

    The interval lies between two order statistics, so it assumes no distribution: the number of values below the true
    median is binomial(n, ½), within ±1.96·√n/2 of n/2 in 95 % of cases.
    """
    ordered = sorted(values)
    n = len(ordered)
    half = 1.96 * math.sqrt(n) / 2
    low, high = max(math.floor(n / 2 - half), 0), min(math.ceil(n / 2 + half), n - 1)
    return Spread(statistics.median(ordered), (ordered[low], ordered[high]) if n >= FEWEST else None)


def saved(reference: Sequence[float], times: Sequence[float]) -> Spread:
    """The share of the reference's time that is saved: 1 − time / reference, paired by round."""
    return spread([1 - ratio for ratio in paired_ratios(times, reference)])
