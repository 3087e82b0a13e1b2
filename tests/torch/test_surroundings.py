"""What surrounds a call: a default device, tensors of inference mode, transforms and graphs around calls that write."""

import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import rmsnorm.torch
from rmsnorm.torch import add_rms_norm, layer_norm, rms_norm, rms_norm_gated, rms_norm_quantized

SHAPE = (4, 3, 8)


def module(name):
    torch.manual_seed(5)
    return getattr(rmsnorm.torch, name)(*(8,) * (2 if name.startswith(("GRU", "LSTM")) else 1))


# Functions of an input, another of its shape, and a gain; modules have parameters of their own.
CALLS = {
    "rms_norm": lambda x, z, w: rms_norm(x, 8, w),
    "rms_norm, rows apart": lambda x, z, w: rms_norm(x.transpose(0, 2).contiguous().transpose(0, 2), 8, w, p=0.5),
    "layer_norm": lambda x, z, w: layer_norm(x, 8, w, w),
    "add_rms_norm": lambda x, z, w: add_rms_norm(x, z, 8, w)[0],
    "rms_norm_gated": lambda x, z, w: rms_norm_gated(x, z, 8, w),
    "GRU": lambda x, z, w: module("GRU")(x * w)[0],
    "LSTM, lengths": lambda x, z, w: module("LSTM")(x * w, lengths=[1, 4, 2])[0],
    "GRUCell": lambda x, z, w: module("GRUCell")(x[0] * w, z[0]),
    "LSTMCell": lambda x, z, w: module("LSTMCell")(x[0] * w)[1],
}


def arguments():
    generator = torch.Generator().manual_seed(6)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in (SHAPE, SHAPE, 8)]


def gradients(run, given):
    y = run(*given)
    (first,) = torch.autograd.grad(y.square().sum(), given[0], create_graph=True)
    return y, first, torch.autograd.grad(first.square().sum(), given[2])[0]


@pytest.mark.parametrize("name", CALLS)
def test_a_default_device_elsewhere(name):
    """Results are on the device of what is given, whatever torch makes new tensors on."""
    expected = gradients(CALLS[name], arguments())
    run, given = CALLS[name], arguments()
    modules = {n: module(n) for n in ("GRU", "LSTM", "GRUCell", "LSTMCell")}
    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        patch.setattr(f"{__name__}.module", modules.__getitem__)
        found = gradients(run, given)
        with torch.no_grad():
            assert torch.equal(run(*given), expected[0])
        assert rms_norm_quantized(given[0].detach(), 8)[0].is_cpu
    for t, same in zip(found, expected, strict=True):
        assert torch.equal(t, same)


@pytest.mark.parametrize("name", ["rms_norm", "rms_norm, rows apart", "layer_norm", "add_rms_norm", "rms_norm_gated"])
@pytest.mark.parametrize("frozen", [0, 2], ids=["input", "gain"])
def test_tensors_made_in_inference_mode(name, frozen):
    """Whichever is trained gets its gradient, though autograd cannot save the other one as it is."""
    given = arguments()
    trained, _ = given[2 - frozen], given[frozen].requires_grad_(False)
    (expected,) = torch.autograd.grad(CALLS[name](*given).square().sum(), trained)
    with torch.inference_mode():
        given[frozen] = given[frozen].detach().clone()
    assert given[frozen].is_inference()
    (found,) = torch.autograd.grad(CALLS[name](*given).square().sum(), trained)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["RMSNorm", "LayerNorm", "GRU", "LSTM", "GRUCell", "LSTMCell"])
def test_modules_on_tensors_made_in_inference_mode(name):
    used = module(name)
    x = torch.randn(4, 3, 8) if "Cell" not in name else torch.randn(3, 8)
    with torch.inference_mode():
        inferred = x.clone()
    loss = [sum(t.square().sum() for t in torch.utils._pytree.tree_leaves(used(t))) for t in (x, inferred)]
    expected, found = (torch.autograd.grad(each, list(used.parameters())) for each in loss)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


# ---- calls that write, where what is written to has no memory, or a graph is made of the call ----


def into_out(x, z):
    rms_norm(x, 8, p=0.5, out=z)
    return x, z


def into_out_of_layer_norm(x, z):
    layer_norm(x, 8, out=z)
    return x, z


def into_input_and_residual(x, z):
    add_rms_norm(x, z, 8, inplace=True)
    return x, z


def exported(run):
    class Module(torch.nn.Module):
        def forward(self, x, z):
            return run(x, z)

    return lambda *given: torch.export.export(Module(), given).module()(*given)


def captured(mode):
    return lambda run: lambda *given: make_fx(run, tracing_mode=mode)(*(t.clone() for t in given))(*given)


WAYS = {
    "vmap": torch.func.vmap,
    "vmap of vmap": lambda run: torch.func.vmap(torch.func.vmap(run)),
    "functionalize": torch.func.functionalize,
    "make_fx": captured("real"),
    "make_fx, fake": captured("fake"),
    "make_fx, symbolic": captured("symbolic"),
    "make_fx of functionalize": lambda run: captured("real")(torch.func.functionalize(run)),
    "export": exported,
    "compile": lambda run: torch.compile(run, backend="aot_eager"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("run", [into_out, into_out_of_layer_norm, into_input_and_residual])
def test_what_writes_writes(run, way):
    torch._dynamo.reset()
    x, z = (torch.randn(SHAPE) for _ in range(2))
    expected = run(x.clone(), z.clone())
    given = x.clone(), z.clone()
    results = WAYS[way](run)(*given)
    for found, written, same in zip(results, given, expected, strict=True):
        torch.testing.assert_close(found, same)
        torch.testing.assert_close(written, same)


@pytest.mark.parametrize("run", [into_out, into_out_of_layer_norm, into_input_and_residual])
def test_fakes_are_written_to_as_if(run):
    with FakeTensorMode():
        given = torch.randn(SHAPE), torch.randn(SHAPE)
        assert all(a is b for a, b in zip(run(*given), given, strict=True))


@pytest.mark.parametrize("run", [into_out, into_out_of_layer_norm, into_input_and_residual])
def test_what_cannot_be_written_under_transforms_is_said(run):
    x, z = torch.randn(SHAPE), torch.randn(SHAPE[1:])
    with pytest.raises(RuntimeError, match="not being vmapped over"):
        torch.func.vmap(run, in_dims=(0, None))(x, z)
    with pytest.raises(ValueError, match="is not differentiable, but an argument requires grad"):
        torch.func.grad(lambda x: run(x, torch.empty(SHAPE))[1].sum())(x)


def test_vmap_of_one_argument_alone():
    """Of strided tensors too, whose results no transform can lay out."""
    x, w = torch.randn(3, 8, 4).transpose(1, 2), torch.rand(5, 8)
    calls = (
        lambda w: rms_norm(x, 8, w),
        lambda w: layer_norm(x, 8, w),
        lambda w: add_rms_norm(x, x, 8, w)[0],
        lambda w: rms_norm_gated(x, x, 8, w),
    )
    for call in calls:
        torch.testing.assert_close(torch.func.vmap(call)(w), torch.stack([call(one) for one in w]))
    batched = torch.randn(5, 3, 4, 8)
    sums = torch.func.vmap(lambda z: add_rms_norm(x, z, 8))(batched)
    for found, expected in zip(sums, zip(*(add_rms_norm(x, z, 8) for z in batched), strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda x: rms_norm(x, {8}), "normalized_shape must be an int or a sequence of ints, got {8}"),
        (
            lambda x: rmsnorm.torch.LayerNorm({8: 1}),
            "normalized_shape must be an int or a sequence of ints, got {8: 1}",
        ),
        (lambda x: rmsnorm.torch.RMSNorm(8, 1e-6, "cpu"), "elementwise_affine must be True or False, got 'cpu'"),
        (lambda x: rmsnorm.torch.RMSNorm(8, bias=None), "bias must be True or False, got None"),
        (lambda x: rmsnorm.torch.LayerNorm(8, 1e-6, True, "cpu"), "bias must be True or False, got 'cpu'"),
        (lambda x: rms_norm(x.to_sparse(), 8), "input must be dense, got a tensor of layout torch.sparse_coo"),
        (lambda x: layer_norm(x.to_sparse_csr(), 8), "input must be dense, got a tensor of layout torch.sparse_csr"),
        (
            lambda x: add_rms_norm(x, x.to_sparse(), 8),
            "residual must be dense, got a tensor of layout torch.sparse_coo",
        ),
        (lambda x: rms_norm_gated(x, x.to_sparse(), 8), "gate must be dense, got a tensor of layout torch.sparse_coo"),
        (lambda x: module("GRU")(x.to_sparse()), "input must be dense, got a tensor of layout torch.sparse_coo"),
        (
            lambda x: module("LSTMCell")(x[0], (x[0].to_sparse(), x[0])),
            "an initial state must be dense, got a tensor of",
        ),
    ],
)
def test_odd_arguments(build, says):
    with pytest.raises(TypeError, match=re.escape(says)):
        build(torch.randn(SHAPE))
