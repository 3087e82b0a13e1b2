"""Timing in turn: every round runs each call once, in a new order, so that drift of the machine hits all alike.

A ratio is taken within each round and the median over rounds is reported: what slows a whole round cancels.
"""

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter_ns, sleep
from typing import Any, TypeAlias

Call: TypeAlias = Callable[[], Any]
Sampler: TypeAlias = Callable[[Call, int], float]


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    A sample is as many calls as take ``sample_ns``. Untimed calls precede it until they are as quick as they have
    been, for ``lead_ns`` at most: they bring the call's own data back into the caches, and they outlast the trouble
    that the previous provider leaves behind. OpenMP's threads spin for some milliseconds after their last task, and
    two threads that were put on one processor wait for each other, 8 ms a call, until the system moves one.
    Rounds go on for ``budget_ns`` within ``rounds``.
    """

    budget_ns: float = 2.0e9
    sample_ns: float = 4e6
    lead_ns: float = 50e6
    rounds: tuple[int, int] = (7, 25)


QUICK = Plan(budget_ns=0.1e9, sample_ns=0.5e6, lead_ns=0.5e6, rounds=(3, 3))
STEP_NS = 2e5  # untimed calls are judged in steps of this length
STEADY = 1.25  # times the quickest step so far


def wall_clock(call: Call, repeats: int) -> float:
    """Nanoseconds a call, over ``repeats`` calls in a bare loop (about 10 ns of it is the loop's own)."""
    turns = range(repeats)
    start = perf_counter_ns()
    for _ in turns:
        call()
    return (perf_counter_ns() - start) / repeats


def measure(
    calls: Mapping[str, Call],
    plan: Plan,
    *,
    spins_s: Mapping[str, float] | None = None,
    sample: Sampler = wall_clock,
    pause: Callable[[int, int], None] = lambda done, rounds: None,
    drop: Callable[[str, Exception], None],
    seed: int = 0,
) -> dict[str, list[float]]:
    """Nanoseconds a call, one figure a round, for each of the calls; figures at the same index are of one round.

    Args:
        calls: what to time, by name.
        plan: how long.
        spins_s: how long a call's threads keep a processor afterwards, where that is longer than a lead-in bears.
        sample: how one sample is taken; another device brings its own clock.
        pause: called between rounds, outside every sample, with the rounds done and to do.
        drop: called with the name and the error of a call that fails; the others go on without it.
        seed: of the order within the rounds.
    """
    warm: dict[str, _Warm] = {}
    times: dict[str, list[float]] = {name: [] for name in calls}

    def attempt(name: str, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:  # one that fails costs its own figures and nobody else's
            times.pop(name)
            drop(name, error)
        sleep((spins_s or {}).get(name, 0.0))

    def begin(name: str) -> None:
        warm[name] = _Warm(calls[name], sample)

    def one_sample(name: str) -> None:
        warm[name].settle(plan.lead_ns)
        times[name].append(sample(calls[name], max(1, round(plan.sample_ns / warm[name].quickest))))

    for name in calls:
        attempt(name, partial(begin, name))
    # Shuffled, not rotated: in a rotation everyone keeps its predecessor, and with it that one's caches and threads.
    shuffle = random.Random(seed).shuffle
    start, (fewest, most) = perf_counter_ns(), plan.rounds
    for done in range(most):
        if not times or (done >= fewest and perf_counter_ns() - start > plan.budget_ns):
            break
        pause(done, most)
        order = list(times)
        shuffle(order)
        for name in order:
            attempt(name, partial(one_sample, name))
    return times


class _Warm:
    """A call with what is known of its cost; making one warms it up."""

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


def quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile (linear interpolation between order statistics)."""
    if len(samples) == 1:
        return samples[0], samples[0], samples[0]
    first, median, third = statistics.quantiles(samples, n=4, method="inclusive")
    return first, median, third


def paired_ratio(of: Sequence[float], to: Sequence[float]) -> tuple[float, float, float]:
    """Quartiles of the ratios within each round. Both series must come from the same rounds."""
    return quartiles([a / b for a, b in zip(of, to, strict=True)])
