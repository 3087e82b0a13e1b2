"""Interleaved timing and the statistics of paired times. No test asserts a time."""

import math
import random
from contextlib import contextmanager

import pytest

from rmsnorm import timing


def test_every_round_takes_each_sample_once_in_changing_order():
    seen, between = [], []

    def rounds():
        for done in range(20):
            between.append(len(seen))
            yield done

    samples = {name: lambda name=name: seen.append(name) or float(len(seen)) for name in "abcd"}
    times = timing.interleave(samples, rounds())
    orders = [tuple(seen[start : start + 4]) for start in range(0, 80, 4)]
    assert between == [*range(0, 80, 4)], "nothing is sampled while a round begins"
    assert all(sorted(order) == list("abcd") for order in orders)
    assert len(set(orders)) > 3
    places = {name: [order.index(name) + 1 + 4 * i for i, order in enumerate(orders)] for name in "abcd"}
    assert times == places, "figures at one index are of one round"


def test_a_sample_that_fails_loses_its_own_figures_only():
    left = iter([1.0, 2.0])
    samples = {"short": lambda: next(left), "long": lambda: 5.0}
    told = []
    times = timing.interleave(samples, range(4), failed=lambda name, error: told.append((name, type(error))))
    assert times == {"long": [5.0] * 4}
    assert told == [("short", StopIteration)]
    with pytest.raises(StopIteration):
        timing.interleave({"short": lambda: next(left)}, range(4))


def test_quartiles_interpolate():
    assert timing.quartiles([5, 1, 4, 2, 3]) == (2, 3, 4)
    assert timing.quartiles([1, 2, 3, 4]) == (1.75, 2.5, 3.25)
    assert timing.quartiles([7.0]) == (7, 7, 7)


def test_paired_ratio_cancels_what_slows_a_whole_round():
    drift = [1.0, 50.0, 2.0, 9.0, 3.0]
    noise = [1.1, 1.0, 0.9, 1.0, 1.0]
    first = [2 * d * e for d, e in zip(drift, noise, strict=True)]
    assert timing.paired_ratios(first, drift) == pytest.approx([2] * 5, rel=0.11)
    assert timing.spread(timing.paired_ratios(first, drift)).median == pytest.approx(2)
    with pytest.raises(ValueError, match="shorter"):
        timing.paired_ratios(first, drift[:-1])


def test_pairing_is_immune_to_a_machine_that_slows_down():
    """LayerNorm 10 ms, RMSNorm 9 ms, a machine up to five times slower: unpaired medians are off, paired ones exact."""
    slowness = [1 + 4 * (i % 7) / 6 for i in range(50)]
    layer = [10 * s for s in slowness]
    rms = [9 * s for s in slowness]
    saved = timing.saved(layer, rms)
    assert saved.median == pytest.approx(0.1)
    assert saved.interval == pytest.approx((0.1, 0.1))


def test_spread_of_known_numbers():
    spread = timing.spread([*range(100, 0, -1)])
    assert spread.median == 50.5
    assert spread.interval == (41, 61)  # the 41st and the 61st of 100: ±1.96·√100/2 about 50
    assert timing.spread([7.0]) == timing.Spread(7.0, None)
    assert timing.spread([1.0] * 5).interval is None  # the extremes of five: 1 - 2/2**5 = 94 %
    assert timing.spread([*range(6)]).interval == (0, 5)


def test_the_interval_covers_the_median_in_95_of_100_cases():
    draw = random.Random(0)
    hits = 0
    for _ in range(2000):
        low, high = timing.spread([draw.expovariate(1) for _ in range(100)]).interval
        hits += low <= math.log(2) <= high
    assert 0.94 < hits / 2000 < 0.98


def test_a_context_is_entered_once_a_sample_and_outside_of_the_clock(monkeypatch):
    seen = []
    monkeypatch.setattr(timing, "perf_counter_ns", lambda: seen.append("clock") or len(seen))

    @contextmanager
    def context():
        seen.append("in")
        yield
        seen.append("out")

    call = timing.Within(lambda: seen.append("call"), context)
    timing.wall_clock(call, 2)
    assert seen == ["in", "clock", "call", "call", "clock", "out"]
    seen.clear()
    call()
    assert seen == ["in", "call", "out"]
