"""Timing in turn: every round runs each call once, in a new order, so that drift of the machine hits all alike.

A ratio is taken within each round and the median over rounds is reported: what slows a whole round cancels.
"""

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any, TypeAlias

Call: TypeAlias = Callable[[], Any]
Sampler: TypeAlias = Callable[[Call, int], float]


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    A sample is as many calls as take ``sample_ns``. It follows ``lead_ns`` of untimed calls, which bring the call's
    own data back into the caches and outlast the worker threads of the previous provider: OpenMP's and ONNX Runtime's
    spin for about a millisecond after their last task. Rounds go on for ``budget_ns`` within ``rounds``.
    """

    budget_ns: float = 2.0e9
    sample_ns: float = 4e6
    lead_ns: float = 2e6
    rounds: tuple[int, int] = (7, 25)


QUICK = Plan(budget_ns=0.1e9, sample_ns=0.5e6, lead_ns=0.2e6, rounds=(3, 3))


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
    sample: Sampler = wall_clock,
    pause: Callable[[int, int], None] = lambda done, rounds: None,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Nanoseconds a call, one figure a round, for each of the calls; figures at the same index are of one round.

    Args:
        calls: what to time, by name.
        plan: how long.
        sample: how one sample is taken; another device brings its own clock.
        pause: called between rounds, outside every sample, with the rounds done and to do.
        seed: of the order within the rounds.
    """
    if not calls:
        return {}
    costs = {name: _cost(call, plan, sample) for name, call in calls.items()}
    repeats = {name: max(1, round(plan.sample_ns / cost)) for name, cost in costs.items()}
    # A call of a hundred milliseconds needs no lead-in, and would double the run: the spinning is 1 % of it.
    leads = {name: max(int(cost < 50 * plan.lead_ns), round(plan.lead_ns / cost)) for name, cost in costs.items()}
    one_round = sum(cost * (repeats[name] + leads[name]) for name, cost in costs.items())
    low, high = plan.rounds
    rounds = min(max(low, int(plan.budget_ns / one_round)), high)

    # Shuffled, not rotated: in a rotation everyone keeps its predecessor, and with it that one's caches and threads.
    order, shuffle = list(calls), random.Random(seed).shuffle
    times: dict[str, list[float]] = {name: [] for name in calls}
    for done in range(rounds):
        pause(done, rounds)
        shuffle(order)
        for name in order:
            if leads[name]:
                sample(calls[name], leads[name])
            times[name].append(sample(calls[name], repeats[name]))
    return times


def _cost(call: Call, plan: Plan, sample: Sampler) -> float:
    """Nanoseconds a call, roughly, from samples that grow until they are long enough to trust; the warm-up too."""
    call()
    repeats = 1
    while True:
        cost = max(sample(call, repeats), 1.0)
        if cost * repeats >= plan.lead_ns:
            return cost
        repeats *= 4


def quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile (linear interpolation between order statistics)."""
    if len(samples) == 1:
        return samples[0], samples[0], samples[0]
    first, median, third = statistics.quantiles(samples, n=4, method="inclusive")
    return first, median, third


def paired_ratio(of: Sequence[float], to: Sequence[float]) -> tuple[float, float, float]:
    """Quartiles of the ratios within each round. Both series must come from the same rounds."""
    return quartiles([a / b for a, b in zip(of, to, strict=True)])
