"""Compiled graphs: which calls are operators and which are expressions, and the numbers of the small ones."""

import pytest
import torch

from rmsnorm.torch import add_rms_norm, dispatch, layer_norm, rms_norm, rms_norm_gated
from rmsnorm.torch.dispatch import SMALL

N = 32
ROWS = SMALL // N
FLOAT32, FLOAT64, BFLOAT16 = torch.float32, torch.float64, torch.bfloat16

if not dispatch._AS_OPERATOR["cpu"] or not dispatch._SIZES_ARE_TOLD:
    pytest.skip("no kernels, RMSNORM_COMPILE=decompose, or torch < 2.10", allow_module_level=True)


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def operations(x, other, weight, bias, eps=0.0):
    """Every norm that may be an operator, of rows of any length."""
    shape = x.shape[-1:]
    return (
        rms_norm(x, shape, weight, eps, bias=bias, p=0.5),
        rms_norm(x, shape, weight, eps, casting="llama", zero_centered=True),
        layer_norm(x, shape, weight, bias, eps),
        *add_rms_norm(x, other, shape, weight, eps),
        rms_norm_gated(x, other, shape, weight, eps, groups=2),
    )


def tensors(rows, dtype=FLOAT32):
    x, other = (torch.randn(rows, N).to(dtype) for _ in range(2))
    return x, other, torch.randn(N).to(dtype), torch.randn(N).to(dtype)


def norms_in(compile_options, *calls):
    """The operators of ours in the graphs that the calls make, one set for each graph."""
    graphs = []

    def keep(graph, _):
        targets = (node.target for node in graph.graph.nodes if node.op == "call_function")
        graphs.append({str(t) for t in targets if "rmsnorm" in str(t)})
        return graph.forward

    compiled = torch.compile(operations, fullgraph=True, backend=keep, **compile_options)
    for given in calls:
        compiled(*given)
    return graphs


OPERATORS = {f"rmsnorm.{name}" for name in ("rms_norm", "layer_norm", "add_rms_norm", "rms_norm_gated")}


def test_small_calls_are_expressions_and_others_operators():
    assert norms_in({}, tensors(ROWS)) == [set()]
    assert norms_in({}, tensors(1, BFLOAT16)) == [set()]
    assert norms_in({}, tensors(ROWS + 1)) == [OPERATORS]
    assert norms_in({}, tensors(ROWS, FLOAT64)) == [OPERATORS]


def test_calls_of_unknown_size_are_operators():
    """Dynamo is left to find out that the number of rows varies: nothing is compiled again for a third number."""
    assert norms_in({}, *(tensors(rows) for rows in (3, 5, ROWS, ROWS + 1))) == [set(), OPERATORS]
    assert norms_in({"dynamic": True}, tensors(3), tensors(5)) == [OPERATORS]


@pytest.mark.parametrize("which", [0, 1], ids=["input", "other"])
def test_layouts_of_their_own_are_operators(which):
    """Their results' strides are those of empty_like, which the operators' fakes promise."""
    given = list(tensors(3))
    given[which] = torch.randn(N, 3).t()
    (names,) = norms_in({}, given)
    assert names == (OPERATORS if which == 0 else {"rmsnorm.add_rms_norm", "rmsnorm.rms_norm_gated"})


def test_small_16_bit_calls_are_rounded_once():
    """To within the last place of bfloat16, and of its sum."""
    given = tensors(7, BFLOAT16)
    found = torch.compile(operations, fullgraph=True, backend="aot_eager")(*given)
    for one, kernels in zip(found, operations(*given), strict=True):
        assert one.dtype == BFLOAT16
        torch.testing.assert_close(one, kernels, rtol=2**-7, atol=2**-8)
        assert (one == kernels).double().mean() > 0.95


def test_exported_graphs_hold_operators():
    class Module(torch.nn.Module):
        def forward(self, *given):
            return operations(*given)

    for strict in (False, True):
        program = torch.export.export(Module(), tensors(2), strict=strict)
        assert {str(node.target) for node in program.graph.nodes if "rmsnorm" in str(node.target)} == {
            f"{name}.default" for name in OPERATORS
        }


INDUCTOR = pytest.mark.parametrize("backend", ["aot_eager", "inductor"])  # the second compiles C++ for ten seconds


@INDUCTOR
def test_small_calls_are_right_for_rows_of_any_magnitude(backend):
    """Against the same functions in float64: a statistic in float32 would be 0 or infinite in most of these rows."""
    x, other, weight, bias = tensors(7)
    scale = torch.tensor([1e-42, 1e-37, 1e-20, 1.0, 1e19, 1e30, 3e37])[:, None]
    x, other = x * scale, other * scale
    with torch.no_grad():
        *found, gated = torch.compile(operations, fullgraph=True, backend=backend)(x, other, weight, bias)
        *expected, _ = operations(*(t.double() for t in (x, other, weight, bias)))
        expected[3], expected[4] = rms_norm((x + other).double(), (N,), weight.double(), 0.0), x + other
        expected.append(rms_norm_gated(x, other, (N,), weight, 0.0, groups=2))
    assert torch.equal(found[4], expected[4])
    for name, one, wanted in zip(["rms", "llama", "layer", "normed"], found, expected, strict=False):
        bound = 4 * torch.finfo(FLOAT32).eps * (wanted.abs() + bias.abs() + 1)  # x̂ and the bias may cancel
        assert ((one - wanted).abs() <= bound).all(), name
    # In float32 the gated norm's h is 0 or infinite in some rows.
    torch.testing.assert_close(gated, expected[5], rtol=1e-5, atol=1e-6, equal_nan=True)


@INDUCTOR
def test_small_training_steps(backend):
    """Gradients of the traced expressions, against those of the functions in float64."""
    given = [t.requires_grad_() for t in tensors(7)]
    scaled = torch.tensor([1e-15, 1e-6, 1.0, 1e3, 1e10, 1e-3, 1.0])[:, None]
    dys = [torch.randn(7, N) for _ in range(6)]

    def step(function, given, dys):
        x, other, *parameters = given
        scale = scaled.to(x.dtype)
        outputs = function(x * scale, other * scale, *parameters, 1e-40)
        return torch.autograd.grad(outputs, given, [dy.to(x.dtype) for dy in dys])

    found = step(torch.compile(operations, fullgraph=True, backend=backend), given, dys)
    expected = step(operations, [t.detach().double().requires_grad_() for t in given], dys)
    for one, reference in zip(found, expected, strict=True):
        size = reference.abs().amax(-1, keepdim=True)
        assert ((one.double() - reference).abs() <= 1e-5 * size).all()
