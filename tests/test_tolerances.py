"""The rounding and the spacing that intervals are made of, against exact arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from tolerances import DTYPES, FORMATS, rounded, ulp


def fraction(x):
    return Fraction(*x.as_integer_ratio())


def exactly(x, dtype):
    """(spacing at x, x rounded to a multiple of it, or infinity), as fractions; Python rounds ties to even."""
    bits, smallest, largest = FORMATS[dtype]
    size = min(abs(fraction(x)), fraction(largest))
    exponent = (
        max(smallest, size.numerator.bit_length() - size.denominator.bit_length() - bits - 1) if size else smallest
    )
    while size >= Fraction(2) ** (exponent + bits):
        exponent += 1
    step = Fraction(2) ** exponent
    near = round(fraction(x) / step) * step
    return step, near if abs(near) <= fraction(largest) else math.copysign(math.inf, x)


@pytest.mark.parametrize("wide", [np.float64, np.longdouble])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_kind_of_number(dtype, wide):
    """Ties and their neighbours, between the normal numbers, the subnormal ones, and beyond the largest."""
    bits, smallest, largest = FORMATS[dtype]
    if wide == np.float64 and dtype == torch.float64:
        pytest.skip("float64 is rounded to itself")
    values = [0.0, largest, np.nextafter(largest, 0.0)]
    for exponent in (smallest, smallest + 3, smallest + bits - 2, smallest + bits - 1, smallest + bits, -3, 0, 5):
        step = np.ldexp(wide(1), max(exponent - bits + 1, smallest))
        for tie in (1.5, 2.5, 2**bits - 0.5, 2 ** (bits - 1) - 0.5):
            middle = wide(tie) * step
            values += [np.nextafter(middle, wide(0)), middle, np.nextafter(middle, wide(np.inf))]
    beyond = wide(largest) + np.ldexp(wide(1), int(np.frexp(largest)[1]) - bits - 1)  # a tie: to infinity
    values += [np.nextafter(beyond, wide(0)), beyond]
    x = np.array([sign * wide(value) for value in values for sign in (1, -1)], dtype=wide)
    expected = [exactly(value, dtype) for value in x]
    assert [fraction(value) for value in ulp(x, dtype)] == [step for step, _ in expected]
    assert [value if np.isinf(value) else fraction(value) for value in rounded(x, dtype)] == [
        near for _, near in expected
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_no_number_stays(dtype):
    assert np.array_equal(
        rounded(np.array([np.nan, np.inf, -np.inf]), dtype), [np.nan, np.inf, -np.inf], equal_nan=True
    )
