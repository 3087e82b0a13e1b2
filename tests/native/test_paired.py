"""bfloat16 rows, which the kernels take by even and odd elements: every length about a block, every k within one."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rmsnorm.torch import add_rms_norm, layer_norm, rms_norm  # noqa: E402

LENGTHS = (1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 47, 48, 63, 64, 65, 95, 96, 97, 127, 129, 2047, 2048, 2049, 2081)
EPSILON = 2.0**-8
"""Half of bfloat16's distance between 1 and the next number: the most that one rounding is off, relatively."""


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).bfloat16()


def results(function, x, weight, bias, dy, dtype):
    leaves = [x.to(dtype).requires_grad_(), *(t.detach().clone().requires_grad_() for t in (weight, bias))]
    y = function(*leaves)
    return y, *torch.autograd.grad(y, leaves, dy.to(dtype))


def agree(found, expected):
    """Equal up to the sums in float32 and, for a bfloat16 result, one rounding."""
    for a, b in zip(found, expected, strict=True):
        largest = max(1.0, float(b.detach().abs().max()))  # terms of about 1 may cancel: all of dx where n is 1
        rounding = EPSILON if a.dtype == torch.bfloat16 else 0.0
        torch.testing.assert_close(a.double(), b.double(), rtol=rounding + 1e-5, atol=1e-5 * largest)


def norms(n, p):
    yield lambda x, w, b: rms_norm(x, (n,), w, 1e-5, bias=b, p=p)
    yield lambda x, w, b: layer_norm(x, (n,), w, b)
    yield lambda x, w, b: rms_norm(x, (n,), w, 1e-5, bias=b, p=p, zero_centered=True)  # the generic passes


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lengths(n, dtype):
    x, dy, w, b = drawn(5, n), drawn(5, n, seed=1), drawn(n, seed=2).to(dtype), drawn(n, seed=3).to(dtype)
    for norm in norms(n, 1.0):
        agree(*(results(norm, x, w, b, dy, dtype) for dtype in (torch.bfloat16, torch.float64)))


@pytest.mark.parametrize("n", [40, 64, 70])
def test_every_k(n):
    x, dy, w, b = drawn(3, n), drawn(3, n, seed=1), drawn(n, seed=2).float(), drawn(n, seed=3).float()
    for k in range(1, n + 1):
        for norm in norms(n, k / n):
            agree(*(results(norm, x, w, b, dy, dtype) for dtype in (torch.bfloat16, torch.float64)))


@pytest.mark.parametrize("n", [33, 64, 70])
def test_gains_of_heads(n):
    x, dy, w, b = drawn(7, 3, n), drawn(7, 3, n, seed=1), drawn(3, n, seed=2).float(), drawn(3, n, seed=3).float()
    for norm in norms(n, 0.5):
        agree(*(results(norm, x, w, b, dy, dtype) for dtype in (torch.bfloat16, torch.float64)))


@pytest.mark.parametrize("n", [33, 64, 70])
def test_sums_of_two_are_those_of_torch(n):
    x, residual = drawn(5, n), drawn(5, n, seed=1)
    normed, total = add_rms_norm(x, residual, (n,))
    assert torch.equal(total, x + residual)
    assert torch.equal(normed, rms_norm(total, (n,)))


@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0xFFFFFFFF, 0x7FC0FFFF, 0x7F800001])
def test_no_nan_of_a_gain_is_rounded_to_a_number(bits):
    x = drawn(2, 70)
    nan = torch.from_numpy(np.full(70, bits, np.uint32).view(np.float32))
    assert rms_norm(x, (70,), nan).isnan().all()
    assert rms_norm(x, (70,), None, bias=nan).isnan().all()
    leaf = x.clone().requires_grad_()
    (dx,) = torch.autograd.grad(rms_norm(leaf, (70,), nan), leaf, x)
    assert dx.isnan().all()


def test_infinities_and_overflow_come_out_as_in_float32():
    x = drawn(4, 70)
    x[1, 3], x[2, 64], x[3, 5] = torch.inf, -torch.inf, torch.nan
    w = drawn(70, seed=2).float() * 3e38
    expected = rms_norm(x.float(), (70,), w).bfloat16()
    found = rms_norm(x, (70,), w)
    torch.testing.assert_close(found.double(), expected.double(), rtol=2 * EPSILON, atol=0, equal_nan=True)
    assert torch.equal(found.isinf(), expected.isinf())
