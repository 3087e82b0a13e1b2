"""Every backend against the one oracle, over the covering cases of conformance.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from conformance import CASES, COMPILED, COMPOSITE, EAGER, NUMPY_BACKEND, Backend, Case, computed_in, make_inputs
from tolerances import check, expected

COMPILED_CASES = [
    Case("rms_norm", torch.float32, 129, 7, p=0.5, weight=torch.float32, bias=torch.float32, zero_centered=True),
    Case("rms_norm", torch.bfloat16, 1000, 300, weight=torch.float32, layout="sliced"),
    Case("rms_norm", torch.bfloat16, 64, 7, weight=torch.bfloat16, casting="llama", grad_layout="expanded"),
    Case("rms_norm", torch.float64, 33, 2, weight=None, eps=None),
    Case("layer_norm", torch.float32, 65, 7, bias=torch.float32, layout="transposed"),
    Case("rms_norm", torch.float32, 64, 36, heads=3, bias=torch.float32, zero_centered=True),
    Case("add_rms_norm", torch.float16, 128, 7, weight=torch.float16, residual=torch.float16),
]


def conforms(backend: Backend, case: Case) -> None:
    inputs = make_inputs(case)
    before = {name: t.clone() for name, t in vars(inputs).items() if t is not None}
    results = backend.run(case, inputs)
    stream = results.pop("s", None)
    dtypes = {"y": case.out_dtype, "dx": case.dtype, "dweight": case.weight, "dbias": case.bias} | {
        "dresidual": case.residual
    }
    if stream is not None:
        compute = torch.promote_types(computed_in(case.dtype), computed_in(case.residual))
        s = (inputs.x.to(compute) + inputs.residual.to(compute)).to(case.residual)
        assert stream.dtype == case.residual
        assert torch.equal(stream, s), "the new residual is not the rounded sum"
    if backend is NUMPY_BACKEND and case.bias is not None:  # its backward is not told the dtype of the bias
        case = replace(case, bias=results["dbias"].dtype)
        dtypes["dbias"] = case.bias
    intervals = expected(case, inputs, stream, backend.composite)
    if "dsum" in results:  # NumPy returns one gradient for both summands, in the residual stream's dtype
        results["dresidual"] = results.pop("dsum")
        del intervals["dx"]
    assert set(results) == set(intervals)
    for name, interval in intervals.items():
        result = results[name]
        assert result.dtype == dtypes[name], f"{name} is {result.dtype}, not {dtypes[name]}"
        like = {"dweight": inputs.weight, "dbias": inputs.bias}.get(name, inputs.x)
        assert result.shape == like.shape, f"{name} has shape {tuple(result.shape)}, not {tuple(like.shape)}"
        check(result, interval, f"{name} of {case}")
    for name, tensor in before.items():
        assert np.array_equal(tensor.double(), getattr(inputs, name).double()), f"{name} was overwritten"


@pytest.mark.every_level
@pytest.mark.parametrize("case", CASES, ids=str)
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
