"""torch.fx.symbolic_trace: each norm is one node of the graph, whose call has the eager call's bits."""

import pytest
import torch
from torch import fx

from rmsnorm import torch as rt
from rmsnorm.torch import LayerNorm, RMSNorm, RMSNormGated, add_rms_norm, layer_norm, rms_norm, rms_norm_gated


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


def test_what_is_no_tensor_is_refused():
    with pytest.raises(TypeError, match=r"input must be a torch\.Tensor, got list"):
        rms_norm([1.0, 2.0], 2)
