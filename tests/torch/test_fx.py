"""torch.fx.symbolic_trace: each norm is one node of the graph, whose call has the eager call's bits."""

import copy
import pickle

import pytest
import torch
from torch import fx

from rmsnorm import torch as rt
from rmsnorm.torch import (
    LayerNorm,
    RMSNorm,
    RMSNormGated,
    add_rms_norm,
    add_rms_norm_quantized,
    dispatch,
    layer_norm,
    rms_norm,
    rms_norm_gated,
    rms_norm_quantized,
)


class Step(torch.nn.Module):
    def __init__(self, n):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.rand(n))

    def forward(self, x, residual):
        y, stream = rt.add_rms_norm(x, residual, x.shape[-1], self.weight, 1e-3)
        return rms_norm(y, y.shape[-1], p=0.5) + stream


CASES = {
    "rms": (lambda: RMSNorm(7, p=0.5, zero_centered=True, bias=True), {rms_norm}),
    "layer": (lambda: LayerNorm(7), {layer_norm}),
    "gated": (lambda: RMSNormGated(7, norm_before_gate=True), {rms_norm_gated}),
    "add": (lambda: Step(7), {add_rms_norm, rms_norm}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_norm_is_one_node(name):
    make, functions = CASES[name]
    module = make()
    for parameter in module.parameters():
        torch.nn.init.uniform_(parameter)
    args = [torch.randn(3, 7) for _ in range(2 if name in ("gated", "add") else 1)]
    traced = fx.symbolic_trace(module)
    assert functions <= {node.target for node in traced.graph.nodes if node.op == "call_function"}
    assert torch.equal(traced(*args), module(*args))
    for twin in (copy.deepcopy(traced), pickle.loads(pickle.dumps(traced))):  # by the functions' names
        assert torch.equal(twin(*args), module(*args))


@pytest.mark.parametrize("name", [name for name in rt.__all__ if name == name.lower() and "norm" in name])
def test_public_functions_are_found_by_their_names(name):
    """Pickles name a function's module; older ones of the functions say rmsnorm.torch.functional."""
    function = getattr(rt, name)
    assert pickle.loads(pickle.dumps(function)) is function
    if not name.endswith("_norms"):
        assert pickle.loads(f"crmsnorm.torch.functional\n{name}\n.".encode()) is function


class OfWeights(torch.nn.Module):
    """The norm of a constant: only its gain is a proxy."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm
        self.x, self.z = torch.randn(3, 7), torch.randn(3, 7)

    def forward(self, weight):
        return self.norm(self.x, self.z, weight)


@pytest.mark.parametrize(
    ("norm", "function", "shape"),
    [
        (lambda x, z, w: rms_norm(x, 7, w), rms_norm, (7,)),
        (lambda x, z, w: rms_norm(x, 7, bias=w), rms_norm, (7,)),
        (lambda x, z, w: layer_norm(x, 7, None, w), layer_norm, (7,)),
        (lambda x, z, w: add_rms_norm(x, z, 7, w)[0], add_rms_norm, (7,)),
        (lambda x, z, w: add_rms_norm(x, w, 7)[0], add_rms_norm, (3, 7)),
        (lambda x, z, w: rms_norm_gated(x, z, 7, w), rms_norm_gated, (7,)),
        (lambda x, z, w: rms_norm_gated(x, w, 7), rms_norm_gated, (3, 7)),
        (lambda x, z, w: rms_norm_quantized(x, 7, w)[0], rms_norm_quantized, (7,)),
        (lambda x, z, w: add_rms_norm_quantized(x, w, 7)[2], add_rms_norm_quantized, (3, 7)),
    ],
)
def test_any_argument_may_be_what_is_traced(norm, function, shape):
    module = OfWeights(norm)
    w = torch.randn(shape)
    traced = fx.symbolic_trace(module)
    assert next(node.target for node in traced.graph.nodes if node.op == "call_function") is function
    assert torch.equal(traced(w), module(w))


@pytest.mark.parametrize(
    ("call", "function"),
    [
        (lambda x, z: rms_norm_quantized(x, x.shape[-1], dtype=torch.int8), rms_norm_quantized),
        (lambda x, z: add_rms_norm(x, z, 7, inplace=True), add_rms_norm),
        (lambda x, z: (rms_norm(x, 7, out=z), z), rms_norm),
    ],
)
def test_what_has_no_gradient_is_traced_too(call, function):
    traced = fx.symbolic_trace(call)
    assert function in {node.target for node in traced.graph.nodes}
    x, z = torch.randn(3, 7), torch.randn(3, 7)
    given, twins = (x.clone(), z.clone()), (x.clone(), z.clone())
    for found, expected in zip((*traced(*given), *given), (*call(*twins), *twins), strict=True):
        assert torch.equal(found, expected)


def test_a_proxy_is_on_no_device():
    """Asked where CUDA tensors have kernels, which a torch for CPUs does not ask."""
    ways = []

    def call(x):
        ways.append(dispatch._way(x))
        return x

    fx.symbolic_trace(call)
    assert ways == [dispatch.COMPOSITE]


def test_what_is_no_tensor_is_refused():
    with pytest.raises(TypeError, match=r"input must be a torch\.Tensor, got list"):
        rms_norm([1.0, 2.0], 2)
