"""Timing of short calls: each is warmed up before every sample, and repeated until the sample is long enough."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from time import perf_counter_ns, sleep
from typing import TypeAlias

from rmsnorm_lab.timing import Call, interleave, wall_clock

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
