"""What a call's plan is found by."""

import os

import pytest

pytest.importorskip("triton", reason="the plans are of Triton's kernels (pip install triton)")

from tritons import ROOT

PATH = os.pathsep.join(map(str, (ROOT / "tests" / "support", ROOT / "tools")))


def test_a_plan_that_is_found_is_the_one_that_would_be_made(run_python):
    plans, found = map(int, run_python("import plan_keys; plan_keys.main(20191016, 100)", PYTHONPATH=PATH).split())
    assert plans > 500
    assert found > 500


def test_a_key_that_leaves_something_out_would_be_seen(run_python):
    """Without the gradients of the parameters, as once."""
    source = """
import plan_keys
from rmsnorm.torch.triton import plans
whole = plans._describe
def without(tensors):
    said, addresses, low = whole(tensors)
    return whole(tensors[:4])[0], addresses, low
plan_keys.eager.nodes = None
plans._describe = without
plan_keys.main(20191016, 40)
"""
    assert "AssertionError: ('plan_" in run_python(source, status=1, PYTHONPATH=PATH)
