"""Rounds, repeats and untimed calls of a measurement. No test asserts a time."""

from collections import Counter
from functools import partial

import pytest

from rmsnorm import timing

torch = pytest.importorskip("torch")
pytest.importorskip("rich")


def _refuse_to_drop(name, error):
    raise AssertionError(name) from error


def test_measure_fits_the_repeats_to_the_cost():
    costs = {"fast": 1e3, "middle": 1e5, "slow": 1e8}
    samples = []

    def clock(call, repeats):
        samples.append((call(), repeats))
        return costs[call()]

    plan = timing.Plan(budget_ns=0, sample_ns=1e6, lead_ns=5e7, rounds=(12, 20))
    times = timing.measure({name: lambda name=name: name for name in costs}, plan, sample=clock, drop=_refuse_to_drop)
    assert times == {name: [cost] * 12 for name, cost in costs.items()}, "no budget gives the fewest rounds"
    leads_and_samples = [("fast", 256), ("fast", 1000), ("middle", 2), ("middle", 10), ("slow", 1)]
    assert Counter(samples[-12 * 5 :]) == dict.fromkeys(leads_and_samples, 12), "a long call needs no lead-in"
    assert timing.measure({}, plan, sample=clock, drop=_refuse_to_drop) == {}


def test_a_call_that_fails_while_timed_costs_nobody_else():
    served, dropped = {"early": 0, "late": 0, "good": 0}, []

    def call(name, last):
        served[name] += 1
        if served[name] > last:
            raise RuntimeError(f"{name} is out of memory")

    named = {name: partial(call, name, last) for name, last in {"early": 0, "late": 4, "good": 10**9}.items()}
    times = timing.measure(
        named,
        timing.Plan(budget_ns=0, sample_ns=1, lead_ns=0, rounds=(5, 5)),
        sample=lambda call, repeats: call() or timing.STEP_NS,
        drop=lambda name, error: dropped.append((name, str(error))),
    )
    assert list(times) == ["good"]
    assert len(times["good"]) == 5
    assert dropped == [("early", "early is out of memory"), ("late", "late is out of memory")]


def test_untimed_calls_go_on_until_they_are_steady():
    costs = iter([1e6, 8e6, 4e6, 1.1e6, 1.0e6] + [9e6] * 9 + [7e6])
    plan = timing.Plan(budget_ns=0, sample_ns=1, lead_ns=5e7, rounds=(2, 2))
    times = timing.measure({"call": lambda: None}, plan, sample=lambda call, repeats: next(costs), drop=_refuse_to_drop)
    # The first costs the warm-up; 8 and 4 ms are not steady, 1.1 is; 1.0 is timed. Then 6 × 9 ms exceed the limit.
    assert times == {"call": [1.0e6, 9e6]}
    assert list(costs) == [9e6, 9e6, 7e6]


def test_rounds_follow_the_budget_and_the_order_changes():
    seen = []
    named = {name: lambda name=name: seen.append(name) for name in "abcd"}
    plan = timing.Plan(budget_ns=1e12, sample_ns=1.0, lead_ns=0.5, rounds=(3, 10))
    times = timing.measure(named, plan, sample=lambda call, repeats: call() or 1e6, drop=_refuse_to_drop)
    rounds = [tuple(seen[start : start + 4]) for start in range(len(seen) - 40, len(seen), 4)]
    assert len(times["a"]) == 10, "an ample budget gives the most rounds"
    assert all(sorted(turn) == list("abcd") for turn in rounds), "each once a round"
    assert len(set(rounds)) > 3, "in changing order"
