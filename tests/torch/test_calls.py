"""Calls of the functions: as torch's own, of heads, without rows, into ``out=``, from several threads, of any size."""

import os
import threading

import pytest
import torch
import torch.nn.functional as F

from rmsnorm.torch import add_rms_norm, layer_norm, rms_norm

N = 48


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(N,), (3, N), (2, 3, N)], ids=str)
def test_same_call_as_torch(dtype, shape):
    x, weight, bias = (
        torch.randn(2, *shape, dtype=dtype),
        torch.randn(shape, dtype=dtype),
        torch.randn(shape, dtype=dtype),
    )
    tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 8 * torch.finfo(dtype).eps}
    for arguments in (
        (x, shape),
        (x, list(shape), weight),
        (x, torch.Size(shape), weight, 1e-4),
        (x, shape, None, 0.1),
    ):
        torch.testing.assert_close(rms_norm(*arguments), F.rms_norm(*arguments), **tolerance)
    for arguments in ((x, shape), (x, shape, weight), (x, shape, weight, bias), (x, shape, None, None, 0.1)):
        torch.testing.assert_close(layer_norm(*arguments), F.layer_norm(*arguments), **tolerance)


def test_heads_of_a_packed_projection():
    """q and k of one qkv tensor, normalised over each head, without a copy; and their gradients."""
    qkv = torch.randn(2, 7, 3, 4, 16, requires_grad=True)
    weight = torch.randn(16)
    for i in range(2):
        for view in (qkv[:, :, i], qkv[:, :, i].transpose(1, 2)):
            y = rms_norm(view, (16,), weight, 1e-6)
            assert torch.equal(y, rms_norm(view.clone(memory_format=torch.contiguous_format), (16,), weight, 1e-6))
            dy = torch.randn(view.shape)
            (found,) = torch.autograd.grad(y, qkv, dy)
            (expected,) = torch.autograd.grad(F.rms_norm(view, (16,), weight, 1e-6), qkv, dy)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, N), (3, 0, N), (0, 0, N)], ids=str)
def test_no_rows(shape):
    x, weight, bias = torch.empty(shape, requires_grad=True), torch.randn(N, requires_grad=True), torch.randn(N)
    for y in (
        rms_norm(x, (N,), weight, bias=bias),
        layer_norm(x, (N,), weight, bias),
        add_rms_norm(x, x, (N,), weight)[0],
    ):
        assert y.shape == x.shape
        dx, dweight = torch.autograd.grad(y.sum(), (x, weight))
        assert dx.shape == x.shape
        assert torch.equal(dweight, torch.zeros(N))
    for y in (rms_norm(x, (N,)), layer_norm(x, (N,)), add_rms_norm(x, x, (N,))[0]):
        assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("operation", [rms_norm, layer_norm])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_out(operation, dtype):
    x, weight, bias = torch.randn(5, N).to(dtype), torch.randn(N), torch.randn(N)
    expected = operation(x, (N,), weight, bias=bias)
    strided = torch.full((5, 3 * N), torch.nan, dtype=dtype)
    for out in (torch.full_like(x, torch.nan), strided[:, N : 2 * N], torch.full((N, 5), torch.nan, dtype=dtype).t()):
        assert operation(x, (N,), weight, bias=bias, out=out) is out
        assert torch.equal(out, expected)
    assert strided[:, :N].isnan().all()
    assert strided[:, 2 * N :].isnan().all()
    assert operation(x, (N,), weight, bias=bias, out=x) is x
    assert torch.equal(x, expected)


def test_concurrent_calls(set_threads):
    """Several Python threads at once, forward and backward, each with its own data: the bits of a lone call."""
    set_threads(2)
    data = [torch.randn(700, 129) for _ in range(4)]
    weight = torch.randn(129)

    def work(x):
        x, w = x.clone().requires_grad_(), weight.clone().requires_grad_()
        y = rms_norm(x, (129,), w, 1e-6)
        return (y.detach(), *torch.autograd.grad(y, (x, w), torch.cos(x.detach())))

    expected, wrong = [work(x) for x in data], []

    def repeat(i):
        for _ in range(20):
            if not all(torch.equal(a, b) for a, b in zip(work(data[i]), expected[i], strict=True)):
                wrong.append(i)

    threads = [threading.Thread(target=repeat, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(os.environ.get("RMSNORM_TEST_LARGE") != "1", reason="needs 12 GiB: set RMSNORM_TEST_LARGE=1")
def test_more_than_two_to_the_31_elements():
    """2³¹ + 3·4096 elements of bfloat16; rows beyond the border give what they give alone, the last one included."""
    rows, n = 2**31 // 4096 + 3, 4096
    x, weight = torch.empty(rows, n, dtype=torch.bfloat16), torch.randn(n)
    block = torch.randn(997, n).bfloat16()
    for start in range(0, rows, 997):
        x[start : start + 997] = block[: min(997, rows - start)]
    y = rms_norm(x, (n,), weight, 1e-6)
    expected = rms_norm(block, (n,), weight, 1e-6)
    for start in range(0, rows, 997):
        part = y[start : start + 997]
        assert torch.equal(part, expected[: len(part)])
    del y
    sparse = torch.zeros(1, n, dtype=torch.bfloat16).expand(rows, n)
    x.requires_grad_()
    (dx,) = torch.autograd.grad(rms_norm(x, (n,), weight, 1e-6), x, sparse)
    assert not dx.any()
