"""rmsnorm.jax against the oracle, over cases of the conformance suite."""

import pytest

pytest.importorskip("jax", reason="JAX is not installed: pip install 'rmsnorm[jax]'")

from conformance import CASES
from conforms import conforms
from rmsnorm.jax import kernels
from through_jax import JAX

SMALL = [case for case in CASES if case.casting == "once" and case.rows * case.n < 1 << 17]


@pytest.mark.skipif(bool(kernels.missing), reason=str(kernels.missing))
@pytest.mark.parametrize("case", SMALL[::6], ids=str)
def test_kernels(case):
    conforms(JAX, case)


WITHOUT_KERNELS = """
from rmsnorm import native
native.missing = "a test"
from conformance import CASES
from conforms import conforms
from rmsnorm.jax import kernels
from through_jax import EXPRESSION

assert kernels.missing == "a test"
small = [case for case in CASES if case.casting == "once" and case.rows * case.n < 1 << 17]
for case in small[1::24]:
    conforms(EXPRESSION, case)
"""


def test_expression(run_python):
    """What other devices run, in a process without kernels."""
    run_python(WITHOUT_KERNELS, JAX_PLATFORMS="cpu", OMP_NUM_THREADS="1")
