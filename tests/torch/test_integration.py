"""The functions and modules inside PyTorch: compilers, exporters, wrappers, devices without data, torch's own norms."""

import copy
import inspect
import io
import os
import pickle
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

import rmsnorm.torch
from rmsnorm.torch import LayerNorm, RMSNorm, add_rms_norm, layer_norm, rms_norm

N = 48


def weighted(module: nn.Module) -> nn.Module:
    """With random parameters: at their first values gain and bias do nothing."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


class Block(nn.Module):
    """All three operations in one graph."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = RMSNorm(N, eps=1e-6, bias=True, p=0.5), LayerNorm(N)
        self.linear = nn.Linear(N, N)

    def forward(self, x):
        normed, stream = add_rms_norm(self.linear(self.inner(x)), x, (N,), self.inner.weight, 1e-6)
        return self.outer(normed) + stream


# ---- compile and export ---------------------------------------------------------------------------------------------


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


# ---- no data, other tensors -----------------------------------------------------------------------------------------


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


# ---- modules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ours", "theirs"), [(RMSNorm, nn.RMSNorm), (LayerNorm, nn.LayerNorm)])
def test_signature_state_and_attributes_are_torchs(ours, theirs):
    positional = [p for p in inspect.signature(theirs.__init__).parameters.values() if p.default is not p.empty]
    for parameter in positional:
        assert inspect.signature(ours.__init__).parameters[parameter.name].default == parameter.default
    for shape in (N, (3, N), torch.Size([N])):
        mine, other = weighted(ours(shape, 1e-3)), theirs(shape, 1e-3)
        assert mine.normalized_shape == other.normalized_shape
        assert (mine.eps, mine.elementwise_affine) == (other.eps, other.elementwise_affine)
        assert list(mine.state_dict()) == list(other.state_dict())
        other.load_state_dict(mine.state_dict())
        again = ours(shape, 1e-3)
        again.load_state_dict(other.state_dict())
        x = torch.randn(2, 3, N)
        torch.testing.assert_close(mine(x), other(x), rtol=1e-5, atol=1e-5)
        assert torch.equal(again(x), mine(x))


def test_initial_parameters():
    assert torch.equal(RMSNorm(N).weight.detach(), torch.ones(N))
    assert torch.equal(RMSNorm(N, zero_centered=True).weight.detach(), torch.zeros(N))
    assert torch.equal(RMSNorm(N, bias=True).bias.detach(), torch.zeros(N))
    assert RMSNorm(N).bias is None
    bare = RMSNorm(N, elementwise_affine=False)
    assert bare.weight is None
    assert not bare.state_dict()
    assert RMSNorm((2, N), dtype=torch.bfloat16).weight.dtype == torch.bfloat16
    x = torch.randn(3, N)
    assert torch.equal(RMSNorm(N, zero_centered=True)(x), RMSNorm(N)(x))
    assert LayerNorm(N, bias=False).bias is None


def test_repr_shows_what_was_chosen():
    text = repr(RMSNorm(N, eps=1e-6, p=0.25, zero_centered=True, casting="once", bias=True))
    for part in (str(N), "eps=1e-06", "p=0.25", "zero_centered=True", "bias=True"):
        assert part in text
    assert "elementwise_affine=True" in repr(RMSNorm(N))


@pytest.mark.parametrize(
    "make",
    [
        lambda: RMSNorm(N, 1e-6, bias=True, p=0.5, zero_centered=True),
        lambda: RMSNorm(N, casting="llama"),
        lambda: LayerNorm(N),
    ],
    ids=["rms", "llama", "layer"],
)
def test_copies(make):
    module, x = weighted(make()), torch.randn(3, N)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(buffer, weights_only=False)):
        assert repr(twin) == repr(module)
        assert torch.equal(twin(x), module(x))
        assert all(a is not b for a, b in zip(twin.parameters(), module.parameters(), strict=True))


def test_the_place_of_a_norm_in_a_live_model():
    """Swapped in mid-training with its Parameter and the optimiser's state, training goes on as it would have."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(N, N), weighted(nn.RMSNorm(N)), nn.Linear(N, 3))
    data, target = torch.randn(64, N), torch.randint(3, (64,))

    def train(model, optimizer):
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(data), target)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    train(model, optimizer)
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    ours = RMSNorm(N)
    ours.weight = twin[1].weight
    twin[1] = ours
    assert list(twin.state_dict()) == list(model.state_dict())
    expected, found = train(model, optimizer), train(twin, twin_optimizer)
    assert expected[-1] < expected[0]
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    torch.testing.assert_close(twin[1].weight, model[1].weight, rtol=1e-3, atol=1e-4)
    assert twin_optimizer.state[twin[1].weight]["step"] == 40


def test_functional_call_and_ensembles():
    modules = [weighted(RMSNorm(N, 1e-6, bias=True)) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(modules)
    x = torch.randn(3, 4, N)

    def call(parameters, buffers, x):
        return torch.func.functional_call(modules[0], (parameters, buffers), (x,))

    found = torch.vmap(call)(parameters, buffers, x)
    torch.testing.assert_close(
        found, torch.stack([m(a) for m, a in zip(modules, x, strict=True)]), rtol=1e-5, atol=1e-6
    )
    one = torch.func.functional_call(modules[0], dict(modules[1].named_parameters()), (x,))
    assert torch.equal(one, modules[1](x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    """A float32 gain on 16-bit activations keeps their dtype; the gradient of the gain is float32."""
    linear, norm, x = nn.Linear(N, N), weighted(RMSNorm(N, 1e-6)), torch.randn(5, N)
    with torch.autocast("cpu", dtype):
        hidden = linear(x)
        y = norm(hidden)
    assert (hidden.dtype, y.dtype) == (dtype, dtype)
    assert torch.equal(y, rms_norm(hidden, (N,), norm.weight, 1e-6))
    y.float().pow(2).sum().backward()
    assert norm.weight.grad.dtype == torch.float32
    assert norm.weight.grad.abs().max() > 0
    assert linear.weight.grad.abs().max() > 0


# ---- torch's own norms, layouts, sizes, out= ------------------------------------------------------------------------


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


# ---- imports --------------------------------------------------------------------------------------------------------


def test_importing_loads_and_starts_nothing_else(run_python):
    assert (
        run_python("import sys, rmsnorm; print(sorted({'torch', 'jax', 'numpy'} & set(sys.modules)))").strip() == "[]"
    )
    numpy_only = "import sys, rmsnorm.numpy; print(sorted({'torch', 'jax'} & set(sys.modules)))"
    assert run_python(numpy_only).strip() == "[]"
    source = """
import os, sys, torch
before = len(os.listdir("/proc/self/task")), set(sys.modules)
import rmsnorm.torch
assert len(os.listdir("/proc/self/task")) == before[0], "a thread was started"
assert "triton" not in set(sys.modules) - before[1], "triton was imported"
assert "torch._dynamo" not in set(sys.modules) - before[1], "the compiler was imported"
assert "torch._inductor" not in set(sys.modules) - before[1], "the compiler was imported"
rmsnorm.torch.rms_norm(torch.randn(300, 64), (64,))
"""
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("no /proc to count threads in")
    run_python(source)


def test_public_names():
    functions = {"rms_norm", "layer_norm", "add_rms_norm", "rms_norm_gated", "rms_norm_quantized"}
    norms, networks = {"RMSNorm", "LayerNorm", "RMSNormGated"}, {"GRU", "LSTM", "GRUCell", "LSTMCell"}
    models = {"accelerate", "profile_norms", "swap_norms"}
    assert set(rmsnorm.torch.__all__) == functions | norms | networks | models
    for name in rmsnorm.torch.__all__:
        assert getattr(rmsnorm.torch, name).__doc__
