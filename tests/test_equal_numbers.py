"""The norms' kernels where the rounding errors of sums do not cancel: as accurate as for random numbers."""

import pytest

import equal_numbers
from conformance import DTYPES, EAGER


@pytest.mark.every_level
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", equal_numbers.LENGTHS)
@pytest.mark.parametrize("operation", ["layer_norm", "rms_norm"])
def test_equal_numbers(operation, n, dtype):
    equal_numbers.conforms(EAGER, operation, n, dtype)
