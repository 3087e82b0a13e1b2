"""What must hold for every input: re-scaling, rows that do not see each other, fused sums, all finite numbers."""

from dataclasses import replace
from types import SimpleNamespace

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import composites
import rmsnorm.numpy
import rmsnorm.torch
from conformance import COMPOSITE, DTYPES, EAGER, NUMPY, NUMPY_BACKEND, Case, from_numpy, make_inputs
from rmsnorm.torch import rms_norm
from tolerances import check, expected, ulp, wide

BACKENDS = pytest.mark.parametrize("backend", [EAGER, NUMPY_BACKEND, COMPOSITE], ids=lambda b: b.name)
KERNELS = pytest.mark.parametrize("backend", [EAGER, NUMPY_BACKEND], ids=lambda b: b.name)
LENGTHS = st.sampled_from([1, 2, 3, 8, 15, 16, 17, 33, 64, 100, 257, 4099])
FRACTIONS = st.sampled_from([1.0, 0.5, 0.0625, 1e-9])


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit for bit, signs of zeros and NaN included."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


@BACKENDS
@given(
    n=LENGTHS,
    p=FRACTIONS,
    exponent=st.floats(-30, 38.5),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_rescaling_invariance(backend, n, p, exponent, seed, dtype):
    """eps = 0: y does not change with the scale of x, and dx is inverse to it, from 1e-30 to the largest number."""
    generator = np.random.default_rng(seed)
    base = torch.from_numpy(generator.uniform(-1, 1, (2, n)).astype(np.float32))
    scale = min(10.0**exponent, torch.finfo(dtype).max)
    case = Case(dtype=dtype, n=n, rows=2, p=p, weight=dtype, eps=0.0)
    inputs = make_inputs(case)
    inputs.x = (base.double() * scale).to(dtype)
    assume(bool((inputs.x[:, : case.k].double().abs().amax(-1) > 1e-5 * scale).all()))  # else dx itself overflows
    results = backend.run(case, inputs)
    for name, interval in expected(case, inputs).items():
        check(results[name], interval, name)
    if dtype == torch.float32:
        inputs.x = base
        there, here = wide(results["y"]), wide(backend.run(case, inputs)["y"])
        assert (np.abs(there - here) <= 12 * ulp(here, dtype)).all()  # 4 each, and x is rounded again


@BACKENDS
@given(data=st.data(), p=FRACTIONS, dtype=st.sampled_from(DTYPES))
def test_any_finite_row(backend, data, p, dtype):
    """Any finite bit pattern, subnormals and the largest numbers, at eps = 0 or not."""
    shape = data.draw(st.tuples(st.integers(1, 3), LENGTHS))
    eps = data.draw(st.sampled_from([0.0, 1e-5]))
    width = {torch.float16: 16, torch.float64: 64}.get(dtype, 32)
    values = data.draw(arrays.arrays(f"f{width // 8}", shape, elements={"allow_nan": False, "allow_infinity": False}))
    with np.errstate(all="ignore"):
        x = from_numpy(values.astype(NUMPY[dtype]))
    assume(bool(torch.isfinite(x.double()).all()))
    case = Case(dtype=dtype, n=shape[1], rows=shape[0], p=p, weight=None, eps=eps)
    inputs = SimpleNamespace(**{**vars(make_inputs(case)), "x": x})
    if eps == 0.0:
        assume(bool((x[:, : case.k] != 0).any(-1).all()))
    check(backend.run(case, inputs)["y"], expected(case, inputs)["y"], "y")


@KERNELS
@given(n=LENGTHS, dtype=st.sampled_from(DTYPES), bad=st.sampled_from([np.nan, np.inf, -np.inf]), data=st.data())
def test_what_is_not_finite_stays_in_its_row(backend, n, dtype, bad, data):
    case = Case(dtype=dtype, n=n, rows=5, weight=dtype, eps=1e-5)
    inputs = make_inputs(case)
    clean = backend.run(case, inputs)
    row, column = data.draw(st.integers(0, 4)), data.draw(st.integers(0, n - 1))
    inputs.x[row, column] = bad
    found = backend.run(case, inputs)
    others = [i for i in range(5) if i != row]
    assert same(found["y"][others], clean["y"][others])
    assert same(found["dx"][others], clean["dx"][others])
    torch_s = torch.nn.functional.rms_norm(inputs.x[row].double(), (n,), inputs.weight.double(), 1e-5)
    torch.testing.assert_close(found["y"][row].double(), torch_s, rtol=0, atol=0, equal_nan=True)


@KERNELS
@pytest.mark.parametrize("operation", ["rms_norm", "layer_norm", "add_rms_norm"])
@given(n=LENGTHS, dtype=st.sampled_from(DTYPES), seed=st.integers(0, 999), data=st.data())
def test_rows_do_not_see_each_other(backend, operation, n, dtype, seed, data):
    """Bit for bit: the same row alone, in another place, in another batch."""
    rows = data.draw(st.integers(2, 40))
    residual = dtype if operation == "add_rms_norm" else None
    p = 1.0 if operation == "layer_norm" else data.draw(FRACTIONS)
    case = Case(operation, dtype, n, rows, p=p, weight=dtype, bias=dtype, residual=residual, scale=1 + seed / 100)
    inputs = make_inputs(case)
    names = ("y", "s", "dx", "dresidual", "dsum")
    whole = {name: result for name, result in backend.run(case, inputs).items() if name in names}

    def part(rows_of):
        taken = {
            name: t[rows_of] if name in ("x", "dy", "residual", "grad_residual") and t is not None else t
            for name, t in vars(inputs).items()
        }
        return backend.run(replace(case, rows=len(rows_of)), SimpleNamespace(**taken))

    order = data.draw(st.permutations(range(rows)))
    few = data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=3))
    for chosen in (order, few):
        for name, result in part(chosen).items():
            if name in names:
                assert same(result, whole[name][chosen]), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("functions", [rmsnorm.torch, composites], ids=["eager", "composite"])
@given(n=LENGTHS, rows=st.integers(1, 9), p=FRACTIONS, seed=st.integers(0, 999), zero_centered=st.booleans())
def test_fused_sum_is_the_unfused_bit_for_bit(dtype, functions, n, rows, p, seed, zero_centered):
    generator = torch.Generator().manual_seed(seed)
    x, residual = (torch.randn(rows, n, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(n, generator=generator) for _ in range(2))
    options = {"bias": bias, "p": p, "zero_centered": zero_centered}
    normed, stream = functions.add_rms_norm(x, residual, (n,), weight, 1e-6, **options)
    assert same(stream, residual + x)
    assert same(normed, functions.rms_norm(stream, (n,), weight, 1e-6, **options))


@given(n=LENGTHS, rows=st.integers(1, 9), p=FRACTIONS, seed=st.integers(0, 999))
def test_numpy_is_torch_bit_for_bit(n, rows, p, seed):
    """Both call the same kernels."""
    generator = np.random.default_rng(seed)
    x, weight = generator.standard_normal((rows, n), np.float32), generator.standard_normal(n, np.float32)
    from_torch = rms_norm(torch.from_numpy(x), (n,), torch.from_numpy(weight), 1e-6, p=p)
    assert same(torch.from_numpy(rmsnorm.numpy.rms_norm(x, weight, eps=1e-6, p=p)), from_torch)


@pytest.mark.parametrize("casting_dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@given(n=LENGTHS, seed=st.integers(0, 999))
def test_llama_casting_is_the_frameworks_expression(casting_dtype, weight_dtype, n, seed):
    """weight * x̂.to(dtype), bit for bit, given our own x̂.

    Not so for what the composite is left to do, whose x̂ may be a neighbour: a float64 gain, a 16-bit product plus a
    bias of another dtype. Those are held to the oracle in test_conformance.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, n, generator=generator).to(casting_dtype)
    weight = torch.randn(n, generator=generator).to(weight_dtype)
    x_hat = rms_norm(x, (n,), None, 1e-6)
    assert same(rms_norm(x, (n,), weight, 1e-6, casting="llama"), weight * x_hat)
    for bias_dtype in (torch.bfloat16, torch.float16, torch.float32):
        if weight_dtype == casting_dtype != torch.float32 and bias_dtype != weight_dtype:
            continue
        bias = torch.randn(n, generator=generator).to(bias_dtype)
        assert same(rms_norm(x, (n,), weight, 1e-6, bias=bias, casting="llama"), weight * x_hat + bias), bias_dtype


@KERNELS
def test_dweight_error_does_not_grow_with_rows(backend):
    """A million rows whose terms all have one sign: a float32 running sum would be off by hundreds of ulp."""
    rows, n = 1_000_000, 16
    x, dy = torch.rand(rows, n).add_(0.5), torch.rand(rows, n).add_(0.5)
    weight = torch.rand(n)
    inputs = SimpleNamespace(x=x, dy=dy, weight=weight, bias=torch.zeros(n), residual=None, grad_residual=None)
    case = Case(n=n, rows=rows, bias=torch.float32)
    found = backend.run(case, inputs)
    x64, dy64 = x.double(), dy.double()
    x_hat = x64 * torch.rsqrt(x64.square().mean(-1, keepdim=True) + case.eps)
    exact = {"dweight": (dy64 * x_hat).sum(0), "dbias": dy64.sum(0)}
    for name, value in exact.items():
        error = ((found[name].double() - value).abs() / value).max().item()
        assert error <= 8 * 2**-24, f"{name}: relative error {error * 2**24:.1f} u"


@KERNELS
def test_a_row_of_zeros(backend):
    """As torch: 0 where there is an eps, NaN at eps = 0."""
    for eps in (0.0, 1e-6):
        case = Case(n=33, rows=3, weight=torch.float32, eps=eps)
        inputs = make_inputs(case)
        inputs.x[1] = 0
        found = backend.run(case, inputs)
        torch_s = torch.nn.functional.rms_norm(inputs.x, (33,), inputs.weight, eps)
        assert torch.equal(torch.isnan(found["y"]), torch.isnan(torch_s))
        assert torch.isnan(torch_s[1]).all() if eps == 0 else (found["y"][1] == 0).all()
        check(found["y"][[0, 2]], tuple(end[[0, 2]] for end in expected(case, inputs)["y"]), "y")
