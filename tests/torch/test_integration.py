"""The functions and modules inside PyTorch: compilers, exporters, devices without data, tensors of other classes."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

from norm_modules import weighted
from rmsnorm.torch import LayerNorm, RMSNorm, add_rms_norm, layer_norm, rms_norm

N = 48


class Block(nn.Module):
    """All three operations in one graph."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = RMSNorm(N, eps=1e-6, bias=True, p=0.5), LayerNorm(N)
        self.linear = nn.Linear(N, N)

    def forward(self, x):
        normed, stream = add_rms_norm(self.linear(self.inner(x)), x, (N,), self.inner.weight, 1e-6)
        return self.outer(normed) + stream


@pytest.fixture
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_dynamo")
def test_compiled_training_step_without_recompiling():
    """One graph for all batch sizes, and the same numbers as eager."""
    model = weighted(Block())
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for rows in (7, 2, 64, 301):
        with torch._dynamo.config.patch(error_on_recompile=rows != 7):
            x = torch.randn(rows, N, requires_grad=True)
            found = torch.autograd.grad(compiled(x).pow(2).sum(), (x, *model.parameters()))
        expected = torch.autograd.grad(model(x).pow(2).sum(), (x, *model.parameters()))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())


@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_forward_is_eager_bit_for_bit(dtype):
    """The same kernels run where a call is an operator (test_compiled.py has small ones); dynamo is left to find out by
    itself that the batch varies: one recompilation at most."""
    weight, bias = torch.randn(N), torch.randn(N)
    counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")

    def function(x):
        return rms_norm(x, (N,), weight, 1e-6, bias=bias, p=0.5)

    compiled = torch.compile(function, fullgraph=True, backend=counter)
    with torch.no_grad():
        for rows in (301, 305, 9, 33, 128):
            x = torch.randn(rows, N).to(dtype)
            assert torch.equal(compiled(x), function(x))
    assert counter.frame_count <= 2


@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    model = weighted(Block()).eval()
    batch = torch.export.Dim("batch", min=2, max=4096)
    program = torch.export.export(model, (torch.randn(4, N),), dynamic_shapes=({0: batch},), strict=strict)
    for candidate in (program, program.run_decompositions({})):
        for rows in (2, 33):
            x = torch.randn(rows, N)
            torch.testing.assert_close(candidate.module()(x), model(x), rtol=1e-5, atol=1e-5)


def test_trace():
    model = weighted(Block()).eval()
    traced = torch.jit.trace(model, torch.randn(4, N))
    for rows in (4, 9):
        x = torch.randn(rows, N)
        torch.testing.assert_close(traced(x), model(x), rtol=1e-5, atol=1e-5)


def test_meta():
    x, w = torch.empty(3, N, device="meta", dtype=torch.bfloat16), torch.empty(N, device="meta")
    y = rms_norm(x, (N,), w, bias=w, p=0.25)
    normed, stream = add_rms_norm(x, x.float(), (N,), w)
    for tensor, dtype in ((y, x.dtype), (normed, x.dtype), (stream, torch.float32), (layer_norm(x, (N,), w), x.dtype)):
        assert (tensor.device.type, tensor.shape, tensor.dtype) == ("meta", x.shape, dtype)
    assert rms_norm(x, (N,), w, casting="llama").dtype == torch.float32
    module = RMSNorm(N, bias=True, device="meta")
    assert module.weight.is_meta
    module.to_empty(device="cpu").reset_parameters()
    assert torch.equal(module.weight.detach(), torch.ones(N))
    assert torch.equal(module.bias.detach(), torch.zeros(N))


def test_fake_tensors():
    with FakeTensorMode():
        x, w = torch.empty(3, N, requires_grad=True), torch.empty(N, requires_grad=True)
        y = rms_norm(x, (N,), w, p=0.5)
        y.sum().backward()
        assert (y.shape, y.dtype) == (x.shape, x.dtype)
        assert x.grad.shape == x.shape
        assert w.grad.shape == w.shape


def test_a_subclass_that_dispatches():
    """A tensor whose memory is elsewhere (here: in two others) must not reach a kernel that wants a pointer."""
    a, b, w = torch.randn(3, N), torch.randn(3, N), torch.randn(N)
    y = rms_norm(TwoTensor(a, b), (N,), w, 1e-6)
    assert isinstance(y, TwoTensor)
    torch.testing.assert_close(y.a, rms_norm(a, (N,), w, 1e-6), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(y.b, rms_norm(b, (N,), w, 1e-6), rtol=1e-5, atol=1e-6)


def test_a_subclass_that_overrides_functions():
    class Logged(torch.Tensor):
        calls = 0

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            cls.calls += 1
            return super().__torch_function__(function, types, args, kwargs or {})

    x, w = torch.randn(3, N), torch.randn(N)
    y = rms_norm(x.as_subclass(Logged), (N,), w, 1e-6)
    assert isinstance(y, Logged)
    assert Logged.calls > 0
    torch.testing.assert_close(y.as_subclass(torch.Tensor), rms_norm(x, (N,), w, 1e-6), rtol=1e-5, atol=1e-6)


def test_conjugate_free_views_and_parameters_are_plain():
    """nn.Parameter and views of it take the kernels' way and give the same bits as the tensor itself."""
    x, w = torch.randn(3, N), torch.randn(2, N)
    expected = rms_norm(x, (N,), w[1].clone(), 1e-6)
    assert torch.equal(rms_norm(x, (N,), nn.Parameter(w)[1], 1e-6), expected)
    assert torch.equal(rms_norm(nn.Parameter(x), (N,), w[1], 1e-6), expected)
