"""Every transform × eager, compiled, exported × GRU, LSTM and cells, against a loop written from the equations."""

from types import SimpleNamespace

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor

import plain_rnn
from rmsnorm.torch import GRU, LSTM, GRUCell, LSTMCell
from transforms import EAGER, TRANSFORMS, Holds, check_compiled, leaves, same, wanted

H = 3  # also the size of the input, so that an output has its shape
CASES = {
    "GRU": (GRU, {"norm": None}),
    "LSTM": (LSTM, {"norm": None}),
    "GRU, pRMSNorm": (GRU, {"norm": "rms", "p": 0.5}),
    "GRU, LayerNorm, dreamer": (GRU, {"norm": "layer", "placement": "dreamer"}),
    "LSTM, RMSNorm": (LSTM, {"norm": "rms"}),
    "GRUCell, RMSNorm": (GRUCell, {"norm": "rms", "placement": "haste"}),
    "LSTMCell, LayerNorm": (LSTMCell, {"norm": "layer"}),
}
EACH = pytest.mark.parametrize("name", CASES)


def functions(name):
    """(the module, the plain loop) as functions of (x, h0, weight_hh), each output of the input's shape."""
    kind, options = CASES[name]
    torch.manual_seed(3)
    module = kind(H, H, dtype=torch.float64, eps=1e-2, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    fixed = {k: p.detach() for k, p in module.named_parameters()}
    layer, lstm = kind in (GRU, LSTM), kind in (LSTM, LSTMCell)
    suffix = "_l0" if layer else ""

    def ours(x, h0, weight):
        hx = (h0, h0.cos()) if lstm else h0
        own = {**fixed, "weight_hh" + suffix: weight}
        out = torch.func.functional_call(module, own, (x, hx))
        if not layer:
            return out[0] + out[1] if lstm else out
        out, last = out
        return out + (last[0] + last[1] if lstm else last)

    def plain(x, h0, weight):
        own = {k.removesuffix(suffix) + "_l0": p for k, p in fixed.items()} | {"weight_hh_l0": weight}
        like = SimpleNamespace(
            cell=module.cell, norm=module.norm, p=module.p, eps=module.eps, placement=module.placement, num_layers=1,
            hidden_size=H, bidirectional=False, named_parameters=lambda: own.items(),
        )  # fmt: skip
        x, h0 = (x, h0) if layer else (x[None], h0[None])
        out, h_n, c_n = plain_rnn.run(like, x, [len(x)] * x.shape[1], h0, h0.cos() if lstm else None)
        if layer:
            return out + h_n + (c_n if lstm else 0)
        return h_n[0] + c_n[0] if lstm else h_n[0]

    x = torch.randn(2, 2, H, dtype=torch.float64)
    h0 = torch.randn(1, 2, H, dtype=torch.float64)
    given = (x, h0) if layer else (x[0], h0[0])
    return ours, plain, (*given, fixed["weight_hh" + suffix])


@pytest.mark.parametrize("transform", TRANSFORMS)
@EACH
def test_eager(name, transform):
    apply, (ours, plain, given) = TRANSFORMS[transform], functions(name)
    same(apply(ours)(*given), wanted(transform, plain)(*given), transform)


@pytest.mark.parametrize(  # of the layers, each transform once
    ("name", "transforms"),
    [
        ("GRU, pRMSNorm", ("nothing", "grad", "dual numbers")),
        ("LSTM, RMSNorm", ("nothing", "jvp", "vmap of grad")),
        ("GRUCell, RMSNorm", ("nothing", "grad", "jvp", "dual numbers", "vmap of grad")),
    ],
)
def test_compiled(name, transforms):
    """Dynamo unrolls the steps under a transform; otherwise the graph holds the operator."""
    ours, plain, given = functions(name)
    check_compiled(ours, plain, transforms, "aot_eager", given)


@pytest.mark.parametrize("name", ["GRU, LayerNorm, dreamer", "LSTM, RMSNorm"])
def test_exported(name):
    ours, plain, given = functions(name)
    program = torch.export.export(Holds(ours), given)
    assert sum("rmsnorm" in str(node.target) for node in program.graph.nodes) == 1
    for transform in ("nothing", "grad", "vjp", "jvp", "dual numbers", "hessian", "vmap", "vmap of grad", *EAGER):
        same(TRANSFORMS[transform](program.module())(*given), wanted(transform, plain)(*given), transform)


@EACH
@pytest.mark.parametrize("create_graph", [False, True])
def test_inputs_that_depend_on_one_another(name, create_graph):
    """A state computed from the input: its part of the gradient is autograd's, and counts once."""
    ours, plain, (x, h0, weight) = functions(name)
    found = []
    for function in (ours, plain):
        given, gain = leaves((x, weight))
        start = given.sum(0, keepdim=True).expand_as(h0) if h0.dim() == 3 else given.tanh()
        y = function(given, start, gain * given.sum())
        found.append(torch.autograd.grad(y.square().sum(), (given, gain), create_graph=create_graph))
        if create_graph:
            found[-1] += torch.autograd.grad(sum(t.square().sum() for t in found[-1]), (given, gain))
    same(*found, "gradients")


@pytest.mark.parametrize("kind", [GRU, LSTM])
def test_compiled_autograd_in_one_graph(kind):
    """The backward pass of a layer is one operator there."""
    torch._dynamo.reset()
    module = kind(H, H, num_layers=2, bidirectional=True)
    x = torch.randn(4, 2, H, requires_grad=True)
    of = [x, *module.parameters()]
    expected = torch.autograd.grad(module(x)[0].sin().sum(), of)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
        found = torch.autograd.grad(module(x)[0].sin().sum(), of)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_hidden_state_alone_and_gradients_of_other_kinds():
    """Only h_n is used; its gradient is dual, a subclass's, or nothing but zeros that are not stored."""
    module = GRU(H, H, dtype=torch.float64)
    x = torch.randn(4, 2, H, dtype=torch.float64, requires_grad=True)
    last = module(x)[1]
    zeros = torch._efficientzerotensor(last.shape, dtype=torch.float64)
    (found,) = torch.autograd.grad(last, x, zeros, retain_graph=True)
    assert torch.equal(found, torch.zeros_like(x))
    dy = torch.randn_like(last)
    (expected,) = torch.autograd.grad(last, x, dy, retain_graph=True)
    (found,) = torch.autograd.grad(last, x, TwoTensor(dy, 2 * dy), retain_graph=True)
    same((found.a, found.b), (expected, 2 * expected), "subclass")
