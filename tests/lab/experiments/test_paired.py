"""Differences between norms that are paired by seed: their figures, and what is said of them."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")

from made_records import BITS, run_record
from rmsnorm_lab.experiments.paired import difference, said


def runs(norm, *bits):
    """Of seeds 0, 1, ...; None diverged."""
    return [run_record(norm, seed, quality) for seed, quality in enumerate(bits)]


def test_the_interval_is_students_over_the_differences():
    found = difference(BITS, runs("rms", 2.0, 4.0, 7.0), runs("layer", 1.0, 2.0, 3.0))
    assert found.mean == pytest.approx(7 / 3)  # of 1, 2 and 4, whose standard deviation is √(7/3)
    assert found.interval == pytest.approx((7 / 3 - 3.794583, 7 / 3 + 3.794583))  # t = 4.302653 for two degrees
    assert found.seeds == 3
    assert found.texts() == ("+2.333", "[−1.461, 6.128]")
    assert found.better is None


def test_runs_are_paired_by_their_seeds_and_not_by_their_order():
    ours, theirs = runs("rms", 2.0, 5.0, None, 3.0), runs("layer", 1.0, 4.0, 3.0)
    found = difference(BITS, ours[::-1], theirs)
    assert (found.mean, found.interval, found.seeds) == (1.0, (1.0, 1.0), 2)
    assert difference(BITS, runs("rms", None), theirs) is None
    assert difference(BITS, ours[:1], theirs[1:]) is None


@pytest.mark.parametrize(
    ("rms", "expected"),
    [
        (
            (2.0, 2.5),
            "no difference in held-out bits per character is shown between RMSNorm and LayerNorm "
            "(RMSNorm − LayerNorm: +0.250 [−2.927, 3.427], 2 seeds)",
        ),
        (
            (1.5, 1.51),
            "RMSNorm is better than LayerNorm in held-out bits per character "
            "(RMSNorm − LayerNorm: −0.495 [−0.559, −0.431], 2 seeds)",
        ),
        (
            (2.5, 2.51),
            "RMSNorm is worse than LayerNorm in held-out bits per character "
            "(RMSNorm − LayerNorm: +0.505 [0.441, 0.569], 2 seeds)",
        ),
        (
            (2.0004, 2.0003),
            "no difference in held-out bits per character is shown between RMSNorm and LayerNorm "
            "(RMSNorm − LayerNorm: 0.000 [0.000, 0.001], 2 seeds)",
        ),
        (
            (2.5, None),
            "one seed cannot show a difference in held-out bits per character "
            "(RMSNorm − LayerNorm: +0.500), RMSNorm diverged in 1 of 2 runs",
        ),
        ((None, None), "RMSNorm diverged in 2 of 2 runs"),
    ],
)
def test_what_is_said(rms, expected):
    assert said(BITS, "rms", runs("rms", *rms), "layer", runs("layer", 2.0, 2.0)) == expected
