"""A few seconds of the fuzz of every public function's arguments; ``make asan`` runs more, with checked memory."""

import pytest

import fuzz_arguments
from fuzz_arguments import TARGETS


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_one_argument_changed(seed):
    wrong = fuzz_arguments.fuzz(seed, cases=20 * len(TARGETS))
    assert not wrong, "\n".join(wrong)
