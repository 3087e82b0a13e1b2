"""Every backend against the one oracle, over the covering cases of conformance.py."""

import os

import pytest
import torch

from conformance import CASES, COMPILED, COMPOSITE, EAGER, NUMPY_BACKEND, Case, pair_sample
from conforms import conforms

COMPILED_CASES = [
    Case("rms_norm", torch.float32, 129, 7, p=0.5, weight=torch.float32, bias=torch.float32, zero_centered=True),
    Case("rms_norm", torch.bfloat16, 1000, 300, weight=torch.float32, layout="sliced"),
    Case("rms_norm", torch.bfloat16, 64, 7, weight=torch.bfloat16, casting="llama", grad_layout="expanded"),
    Case("rms_norm", torch.float64, 33, 2, weight=None, eps=None),
    Case("layer_norm", torch.float32, 65, 7, bias=torch.float32, layout="transposed"),
    Case("rms_norm", torch.float32, 64, 36, heads=3, bias=torch.float32, zero_centered=True),
    Case("add_rms_norm", torch.float16, 128, 7, weight=torch.float16, residual=torch.float16),
]


# Of another level (test_native.py) the cases that its vectors see: what else they combine is the same C++ there.
OF_ANOTHER_LEVEL = "RMSNORM_ISA" in os.environ and os.environ.get("RMSNORM_TEST_ALL") != "1"
VECTORS_SEE = ("operation", "dtype", "weight", "bias", "n", "rows", "p", "layout", "heads", "casting")
EAGER_CASES = pair_sample(CASES, VECTORS_SEE) if OF_ANOTHER_LEVEL else CASES


@pytest.mark.every_level
@pytest.mark.parametrize("case", EAGER_CASES, ids=str)
def test_eager(case):
    conforms(EAGER, case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_composite(case):
    conforms(COMPOSITE, case)


@pytest.mark.parametrize("case", [c for c in CASES if c.casting in NUMPY_BACKEND.castings and c.heads is None], ids=str)
def test_numpy(case):
    conforms(NUMPY_BACKEND, case)


@pytest.mark.parametrize("case", COMPILED_CASES, ids=str)
def test_compiled(case):
    conforms(COMPILED, case)
