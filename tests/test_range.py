"""The ends of the floating-point range: results that are finite stay so, at every instruction-set level."""

import numpy as np
import pytest
import torch

from rmsnorm import numpy as rn
from rmsnorm.torch import layer_norm, rms_norm, rms_norm_gated, rms_norm_quantized

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.mark.every_level
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("n", [1, 2, 10, 33, 129, 2050])
def test_constant_rows_in_the_kernels(dtype, n):
    """Near the end of the range: their variance is 0, so that 1/σ is 1/√eps."""
    largest, eps = torch.finfo(dtype).max, 1e-5
    constants = torch.tensor([0.5, 1, -1, 1 / 3, 1e-2, 7e-3]).double() * largest
    x = constants.to(dtype)[:, None].repeat(1, n).requires_grad_()
    g, b = (torch.randn(n).requires_grad_() for _ in range(2))
    dy = torch.randn(len(constants), n).to(dtype)
    y = layer_norm(x, (n,), g, b, eps)
    dx, dg, db = torch.autograd.grad(y, (x, g, b), dy)
    assert torch.equal(y, b.detach().to(dtype).expand_as(y))
    assert torch.equal(torch.from_numpy(rn.layer_norm(np.full((2, n), 2e36, np.float32))), torch.zeros(2, n))
    u = dy.double() * g.detach().double()
    expected = (u - u.mean(-1, keepdim=True)) / eps**0.5
    unit = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}.get(dtype, 2.0**-53)
    computed = unit if dtype == torch.float64 else 2.0**-24
    room = unit * expected.abs() + (8 + n**0.5) * computed * 2 * u.abs().amax(-1, keepdim=True) / eps**0.5
    assert ((dx.double() - expected.to(dtype).double()).abs() <= room + 2 * unit * expected.abs()).all()
    assert not dg.any()
    torch.testing.assert_close(db, dy.float().sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.every_level
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("n", [2, 33, 2050, 20011])
def test_constant_rows_of_any_size_in_the_kernels(dtype, n):
    """The error of their mean is large beside √eps long before the end of the range."""
    exponents = torch.arange(0, 1 + min(300, int(np.log10(torch.finfo(dtype).max))), 1 if dtype != torch.float64 else 7)
    constants = (torch.rand(len(exponents), dtype=torch.float64) + 0.5) * 10.0**exponents
    x = constants.clamp(max=torch.finfo(dtype).max).to(dtype)[:, None].repeat(1, n).requires_grad_()
    y = layer_norm(x, (n,))
    assert not y.any()
    u = torch.randn(n).to(dtype)
    (dx,) = torch.autograd.grad(y, x, u.expand_as(y))
    assert torch.equal(dx, dx[:1].expand_as(dx))  # 1/σ is 1/√eps, whatever the constant


@pytest.mark.every_level
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_almost_constant_rows_in_the_kernels(dtype):
    """One element is the next number: such a row is not taken for a constant one."""
    x = torch.tensor([1.0, 3e9, 1e12, -7e24], dtype=dtype)[:, None].repeat(1, 2050)
    x[:, 1234] = torch.nextafter(x[:, 1234], torch.full((), float("inf"), dtype=dtype))
    y = layer_norm(x, (2050,), eps=1e-40)  # small enough to be lost, large enough for a constant row to be served
    torch.testing.assert_close(y[:, 1234], torch.full((4,), 2049**0.5, dtype=dtype), rtol=1e-4, atol=0)


@pytest.mark.every_level
@pytest.mark.parametrize(("dtype", "small"), [(torch.float32, 2.0**-100), (torch.float64, 2.0**-800)], ids=str)
def test_large_results_beyond_the_first_k_in_the_kernels(dtype, small):
    """x̂ within a factor of 2 of the largest number, of rows that have to be scaled up."""
    top = torch.finfo(dtype).max * 0.85
    for first in (1.0, 1.5, 1.9, 1.99):
        x = torch.tensor([[first * small, first * small * top]], dtype=dtype, requires_grad=True)
        y = rms_norm(x, (2,), None, 0.0, p=0.5)
        torch.testing.assert_close(y, torch.tensor([[1.0, top]], dtype=dtype), rtol=4 * torch.finfo(dtype).eps, atol=0)
        dy = torch.tensor([[0.0, 3 / top]], dtype=dtype)
        (dx,) = torch.autograd.grad(y, x, dy)
        expected = torch.tensor([[-3 / (first * small), 3 / top / (first * small)]], dtype=dtype)
        torch.testing.assert_close(dx, expected, rtol=16 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.every_level
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("gain", [False, True])
@pytest.mark.parametrize(("n", "p"), [(4, 0.5), (70, 0.5), (70, 0.1), (64, 0.5), (65, 0.9), (200, 0.3)])
def test_what_is_infinite_beyond_the_first_k_in_the_kernels(dtype, gain, n, p):
    """Its own gradient is u / r: the statistic does not know of it."""
    k = -(-n * round(p * 10) // 10)
    x = torch.randn(3, n).to(dtype)
    x[1, k] = float("inf")
    x[2, -1] = float("nan")
    weight = (torch.rand(n) + 0.5).requires_grad_() if gain else None
    x.requires_grad_()
    dy = torch.ones(3, n, dtype=dtype)
    (dx,) = torch.autograd.grad(rms_norm(x, (n,), weight, 1e-6, p=p), x, dy)
    r = (x.detach().double()[:, :k].square().mean(-1, keepdim=True) + 1e-6).sqrt()
    expected = (dy.double() / r * (1 if weight is None else weight.detach().double())).to(dtype)
    tolerance = 4 * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps if dtype != torch.float64 else 0)
    torch.testing.assert_close(dx[:, k:], expected[:, k:], rtol=tolerance, atol=0)


@pytest.fixture
def flushed(set_threads):
    """Turns the flushing of subnormal numbers on, in this thread, to which all of torch's work is left."""
    set_threads(1)
    yield lambda: torch.set_flush_denormal(True)
    torch.set_flush_denormal(False)


@pytest.mark.every_level
def test_half_precision_where_subnormal_numbers_are_flushed(flushed):
    """Subnormal float16 numbers are normal ones in float32, where the work is done."""
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(torch.float16).view(256, 256)
    wide = every.float()
    to_round = torch.cat([wide, wide * (1 + 2.0**-11), wide * (1 - 2.0**-12), wide + 2.0**-25]).clamp(-65504, 65504)
    rounded = to_round.half()
    small, w = (torch.randn(5, 70) * 2e-6).half(), (torch.randn(70) * 1e-6).half()

    def everything():
        x = small.clone().requires_grad_()
        for y in (rms_norm(x, (70,), w * 1e6, 0.0), layer_norm(x, (70,), w * 1e6, None, 0.0)):
            yield y.detach()
            yield from torch.autograd.grad(y.double().sum(), x)
        yield rms_norm(torch.ones(5, 70), (70,), w, 0.0)
        yield rms_norm(torch.ones(5, 70, dtype=torch.float16), (70,), w, 0.0)
        yield rms_norm_gated(torch.ones(5, 70).half(), small + 1, (70,), w, 0.0)
        yield from rms_norm_quantized(small, (70,), None, 0.0)
        yield torch.from_numpy(rn.rms_norm(small.numpy(), eps=0.0))

    before = [t.clone() for t in everything()]
    assert flushed()
    ones = torch.ones(1, 256)
    for row in range(256):  # x̂ is 1, so that y is the gain
        found, expected = rms_norm(ones, (256,), every[row], 0.0)[0], wide[row]
        right = (found.view(torch.int32) == expected.view(torch.int32)) | (found.isnan() & expected.isnan())
        assert right.all(), every[row][~right]
    for values, expected in zip(to_round, rounded, strict=True):
        found = rms_norm(ones.half(), (256,), values, 0.0)[0]
        right = (found == expected) | (found.isnan() & expected.isnan())
        assert right.all(), (values[~right], found[~right], expected[~right])
    for i, (a, b) in enumerate(zip(before, everything(), strict=True)):
        assert torch.equal(a, b), (i, a, b)
