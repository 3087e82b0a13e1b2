"""Interleaved timing, and ratios of times that were taken in the same round.

Every round takes one sample of each call, in a new random order. What slows the machine for a while (another program, a
warm processor) slows all calls of a round by the same factor. So ratios are taken within rounds, and their median over
the rounds is reported. The order is shuffled and not rotated: in a rotation each call always runs after the same other
one, and finds that one's caches and threads.
"""

import math
import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from time import perf_counter_ns, sleep
from typing import Any, TypeAlias

Call: TypeAlias = Callable[[], Any]


@dataclass(frozen=True)
class Within:
    """A call in a context that is entered and left outside of the clock."""

    call: Call
    context: Callable[[], AbstractContextManager[Any]]

    def __call__(self) -> Any:
        with self.context():
            return self.call()


def wall_clock(call: Call, repeats: int = 1) -> float:
    """Nanoseconds a call, over ``repeats`` calls in a bare loop (about 10 ns of it is the loop's own)."""
    if isinstance(call, Within):
        with call.context():
            return wall_clock(call.call, repeats)
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


# ---- short calls: each is warmed up before every sample, and repeated until the sample is long enough ----

Sampler: TypeAlias = Callable[[Call, int], float]
"""(call, repeats) -> nanoseconds a call."""


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    A sample is as many calls as take ``sample_ns``. Untimed calls precede it until one is about as quick as the
    quickest so far, for ``lead_ns`` at most. They bring the call's own data back into the caches, and they outlast what
    the previous provider leaves: OpenMP's threads spin for some milliseconds after their last task, and two threads on
    one processor wait for each other, 8 ms a call, until the system moves one.
    Rounds go on for ``budget_ns``, with the fewest and the most of them in ``rounds``.
    """

    budget_ns: float = 2.0e9
    sample_ns: float = 4e6
    lead_ns: float = 50e6
    rounds: tuple[int, int] = (7, 25)


QUICK = Plan(budget_ns=0.1e9, sample_ns=0.5e6, lead_ns=0.5e6, rounds=(3, 3))
STEP_NS = 2e5  # untimed calls are judged in steps of this length
STEADY = 1.25  # times the quickest step so far


def measure(
    calls: Mapping[str, Call],
    plan: Plan,
    *,
    spins_s: Mapping[str, float] | None = None,
    sample: Sampler = wall_clock,
    pause: Callable[[int, int], None] = lambda done, rounds: None,
    drop: Callable[[str, Exception], None],
) -> dict[str, list[float]]:
    """Nanoseconds a call, one figure per round, for each of the calls; figures at the same index are of one round.

    Args:
        calls: what to time, by name.
        plan: how long.
        spins_s: how long a call's threads keep a processor afterwards, where that is longer than ``plan.lead_ns``.
        sample: takes one sample; another device has its own clock.
        pause: called between rounds, outside of every sample, with the number of rounds done and the most there can be.
        drop: called with the name and the error of a call that fails; the others go on without it.
    """
    warm: dict[str, _Warm] = {}

    def begin(name: str) -> None:
        try:
            warm[name] = _Warm(calls[name], sample)
        except Exception as error:  # a call that fails loses its own figures only
            drop(name, error)
        sleep((spins_s or {}).get(name, 0.0))

    def one_sample(name: str) -> float:
        try:
            warm[name].settle(plan.lead_ns)
            return sample(calls[name], max(1, round(plan.sample_ns / warm[name].quickest)))
        finally:
            sleep((spins_s or {}).get(name, 0.0))

    for name in calls:
        begin(name)
    return interleave({name: partial(one_sample, name) for name in warm}, _rounds(plan, pause), failed=drop)


def _rounds(plan: Plan, pause: Callable[[int, int], None]) -> Iterator[int]:
    start, (fewest, most) = perf_counter_ns(), plan.rounds
    for done in range(most):
        if done >= fewest and perf_counter_ns() - start > plan.budget_ns:
            return
        pause(done, most)
        yield done


class _Warm:
    """A call and what is known of its cost; making one warms it up."""

    def __init__(self, call: Call, sample: Sampler) -> None:
        call()
        self.call, self.sample = call, sample
        self.repeats = 1
        while (cost := max(sample(call, self.repeats), 1.0)) * self.repeats < STEP_NS:
            self.repeats *= 2
        self.quickest = cost

    def settle(self, limit_ns: float) -> None:
        """Call untimed until steady, or for ``limit_ns``; calls that last longer are left alone."""
        spent = self.quickest
        while spent < limit_ns:
            cost = self.sample(self.call, self.repeats)
            spent += cost * self.repeats
            steady = cost < STEADY * self.quickest
            self.quickest = max(min(self.quickest, cost), 1.0)
            if steady:
                break
