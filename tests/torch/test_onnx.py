"""Export to ONNX: the nodes that a norm becomes, and ONNX Runtime's results beside the eager ones."""

import collections
import io

import pytest
import torch

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from rmsnorm.torch import (  # noqa: E402
    GRU,
    LSTM,
    LayerNorm,
    RMSNorm,
    RMSNormGated,
    add_rms_norm,
    rms_norm,
    rms_norm_rotary,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
PRIMITIVES = {"Pow": 1, "ReduceMean": 1, "Add": 1, "Sqrt": 1, "Reciprocal": 1, "Mul": 2}
FLOAT32 = 5e-7
"""The largest error relative to the largest element: four roundings."""


class Add(torch.nn.Module):
    def __init__(self, n):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(n))

    def forward(self, x, residual):
        return add_rms_norm(x, residual, x.shape[-1], self.weight)


class Rotary(torch.nn.Module):
    def __init__(self, n):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(n))

    def forward(self, q, k, cos, sin):
        q, k = q.transpose(1, 2), k.transpose(1, 2)
        return rms_norm_rotary(q, k, cos, sin, self.weight, self.weight, 1e-6)


class Bare(torch.nn.Module):
    def forward(self, x):
        return rms_norm(x, x.shape[-2:], None, 1e-3, p=0.3)


def drawn(module):
    for parameter in module.parameters():
        torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return module.eval()


def flat(results):
    return [t for r in results for t in (flat(r) if isinstance(r, tuple) else [r])]


def agrees(model, module, args, tolerance):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    found = session.run(None, dict(zip(names, (t.numpy() for t in args), strict=True)))
    for y, expected in zip(found, flat([module(*args)]), strict=True):
        y = torch.from_numpy(y)
        assert y.dtype == expected.dtype
        assert y.shape == expected.shape
        assert (y.double() - expected.double()).abs().max() <= tolerance * expected.abs().max()


def exported(module, args, opset=23, shapes=None):
    program = torch.onnx.export(module, args, opset_version=opset, dynamic_shapes=shapes, dynamo=True, verbose=False)
    nodes = collections.Counter(node.op_type for node in program.model.graph)
    return nodes, program.model_proto.SerializeToString()


def check(module, *args, nodes=None, opset=23, tolerance=FLOAT32):
    found, model = exported(drawn(module), args, opset)
    if nodes is not None:
        assert found == nodes
    agrees(model, module, args, tolerance)


X = (4, 7, 30)


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({}, {}),
        ({"eps": 1e-3, "zero_centered": True}, {}),
        ({"elementwise_affine": False}, {}),
        ({"bias": True}, {"Add": 1}),
    ],
    ids=str,
)
def test_rms_norm_is_one_node(options, more):
    if options.get("elementwise_affine") is False:  # ONNX's operator must have a gain
        more = {"ConstantOfShape": 1}
    check(RMSNorm(30, **options), torch.randn(X), nodes={"RMSNormalization": 1} | more)


def test_before_opset_23_it_is_primitives():
    check(RMSNorm(30), torch.randn(X), opset=18, nodes=PRIMITIVES)


@pytest.mark.parametrize("opset", [18, 23])
def test_prmsnorm_is_primitives(opset):
    check(RMSNorm(30, p=0.3), torch.randn(X), opset=opset, nodes=PRIMITIVES | {"Slice": 1})


def test_prmsnorm_over_two_dimensions():
    check(Bare(), torch.randn(X))


@pytest.mark.parametrize("opset", [18, 23])
def test_layer_norm(opset):
    check(LayerNorm(30), torch.randn(X) + 3, opset=opset, nodes={"LayerNormalization": 1, "Add": 1}, tolerance=1e-6)


def test_the_residual_step():
    check(Add(30), torch.randn(X), torch.randn(X), nodes={"Add": 1, "RMSNormalization": 1})


@pytest.mark.parametrize(("groups", "norm_first"), [(1, True), (3, False)])
def test_gated(groups, norm_first):
    module = drawn(RMSNormGated(30, groups=groups, norm_before_gate=norm_first))
    args = torch.randn(X), torch.randn(X)
    nodes, model = exported(module, args)
    assert nodes["RMSNormalization"] == 1
    assert nodes.total() <= 8
    agrees(model, module, args, FLOAT32)


def test_gains_of_heads():
    check(RMSNorm(30, heads=7), torch.randn(X))


@pytest.mark.parametrize("casting", ["once", "llama"])
def test_half_precision(casting):
    # Llama's x̂ is rounded to 2^-11 before the gain, where the two may differ by one rounding.
    check(RMSNorm(30, casting=casting).half(), torch.randn(X).half(), tolerance=2.0**-10)


@pytest.mark.parametrize("module", [GRU(6, 8, p=0.5, bidirectional=True), LSTM(6, 8)], ids=["GRU", "LSTM"])
def test_recurrences_are_unrolled(module):
    check(module, torch.randn(2, 2, 6), tolerance=2e-6)


def test_batch_and_length_may_change():
    module = drawn(torch.nn.Sequential(RMSNorm(30), LayerNorm(30), RMSNorm(30, p=0.3)))
    dims = torch.export.Dim("batch"), torch.export.Dim("length")
    _, model = exported(module, (torch.randn(X),), shapes=({0: dims[0], 1: dims[1]},))
    for shape in ((4, 7, 30), (1, 2, 30), (9, 33, 30)):
        agrees(model, module, (torch.randn(shape) + 1,), 1e-6)


def test_an_exported_program():
    module, x = drawn(RMSNorm(30)), torch.randn(X)
    program = torch.onnx.export(torch.export.export(module, (x,)), opset_version=23, dynamo=True, verbose=False)
    assert [node.op_type for node in program.model.graph] == ["RMSNormalization"]
    agrees(program.model_proto.SerializeToString(), module, (x,), FLOAT32)


@pytest.mark.parametrize(
    "make", [lambda: RMSNorm(30), lambda: RMSNorm(30, p=0.3), lambda: LayerNorm(30), lambda: RMSNormGated(30), Add(30)]
)
def test_the_exporter_by_tracing(make):
    module = drawn(make if isinstance(make, Add) else make())
    args = (torch.randn(X),) * (2 if isinstance(module, RMSNormGated | Add) else 1)
    file = io.BytesIO()
    torch.onnx.export(module, args, file, opset_version=17, dynamo=False)
    agrees(file.getvalue(), module, args, 1e-6)


def test_a_graph_for_inductor_keeps_the_operator():
    x, seen = torch.randn(X).double(), []  # float64 is never an expression
    module = drawn(RMSNorm(30)).double()

    def backend(graph, example):
        seen.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return graph

    assert torch.equal(torch.compile(module, backend=backend)(x), module(x))
    assert torch.ops.rmsnorm.rms_norm in seen or torch.ops.rmsnorm.rms_norm.default in seen
    decomposed = torch.export.export(module, (x,)).run_decompositions()
    assert torch.ops.rmsnorm.rms_norm.default in [node.target for node in decomposed.graph.nodes]


def test_a_rotary_embedding():
    """Its expression gives other strides than the kernels; in ONNX there are none to be copied to."""
    module, args = drawn(Rotary(32)), (torch.randn(2, 5, 6, 32), torch.randn(2, 5, 2, 32), *torch.randn(2, 5, 16))
    nodes, model = exported(module, args)
    assert nodes["RMSNormalization"] == 2
    agrees(model, module, args, FLOAT32)
