"""One case through one backend against the oracle: values, dtypes, shapes, and inputs that stay as they were."""

from dataclasses import replace

import numpy as np
import torch

from conformance import NUMPY_BACKEND, Backend, Case, computed_in, make_inputs
from tolerances import check, expected


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
