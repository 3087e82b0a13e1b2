"""Compiled graphs: which calls are operators and which are expressions, and the numbers of the small ones."""

import pytest
import torch

from rmsnorm.torch import add_rms_norm, dispatch, layer_norm, rms_norm, rms_norm_gated
from rmsnorm.torch.dispatch import FUSED, SMALL

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


def usual_norms(x, other, weight, bias, eps=1e-5):
    """Those whose expression is computed in float32."""
    shape = x.shape[-1:]
    return rms_norm(x, shape, weight, eps, bias=bias), *add_rms_norm(x, other, shape, weight, eps)


def norms_in(compile_options, *calls, operations=operations):
    """The operators of ours with kernels in the graphs that the calls make, one set for each graph."""
    graphs = []

    def keep(graph, _):
        targets = (node.target for node in graph.graph.nodes if node.op == "call_function")
        graphs.append({str(t) for t in targets if "rmsnorm" in str(t)} - {"rmsnorm.xhat_in_two_ranges"})
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


@pytest.mark.parametrize("dtype", FUSED, ids=str)
def test_expressions_in_float32_are_fused_up_to_larger_sizes(dtype):
    rows = FUSED[dtype] // N
    names = {"rmsnorm.rms_norm", "rmsnorm.add_rms_norm"}
    assert norms_in({}, tensors(rows, dtype), operations=usual_norms) == [set()]
    assert norms_in({}, tensors(rows + 1, dtype), operations=usual_norms) == [names]
    torch._dynamo.reset()
    with torch.no_grad():
        found = norms_in({}, tensors(rows + 1, dtype), operations=usual_norms)
    assert found == ([set()] if dtype == FLOAT32 else [names])


def test_long_rows_and_the_smallest_eps_are_operators_from_the_usual_size_on():
    x, weight = torch.randn(2, 4097), torch.randn(4097)
    assert norms_in({}, (x, x, weight, weight), operations=usual_norms) == [
        {"rmsnorm.rms_norm", "rmsnorm.add_rms_norm"}
    ]
    for eps in (1e-30, 2.0):
        (found,) = norms_in({}, (*tensors(ROWS + 1), eps), operations=usual_norms)
        assert found == {"rmsnorm.rms_norm", "rmsnorm.add_rms_norm"}


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


MAGNITUDES = [1e-42, 1e-37, 1e-20, 1e-3, 1.0, 1e15, 1e18, 1e19, 1e22, 1e30, 3e37]


@INDUCTOR
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
def test_sums_in_float32_hold_rows_of_any_magnitude(backend, dtype):
    """Results and gradients, against the same functions in float64; the last row has the largest numbers of all."""
    x, other, weight, bias = (t.to(dtype) for t in tensors(len(MAGNITUDES) + 1))
    scale = torch.tensor([*MAGNITUDES, 1.0])[:, None]
    x, other = ((t.float() * scale).to(dtype) for t in (x, other))
    x[-1], other[-1] = torch.finfo(dtype).max * torch.randn(N).sign(), 0
    given = [t.requires_grad_() for t in (x, other, weight, bias)]
    dys = [torch.randn(x.shape) for _ in range(3)]
    dys[2] = dys[2] * 1e-38  # beside it the gradients of large rows, of the size of 1 / RMS, are to be seen

    def step(function, given):
        outputs = function(*given)
        return outputs, torch.autograd.grad(outputs, given, [dy.to(outputs[0].dtype) for dy in dys])

    found, gradients = step(torch.compile(usual_norms, fullgraph=True, backend=backend), given)
    total = (x + other).detach()  # rounded, as the norm reads it
    wide = [t.detach().double().requires_grad_() for t in given]
    expected, wanted = step(usual_norms, wide)
    expected = [expected[0], rms_norm(total.double(), (N,), wide[2], 1e-5), total]
    unit = torch.finfo(dtype).eps
    for one, reference in zip(found, expected, strict=True):
        assert ((one - reference).abs() <= 4 * unit * (reference.abs() + bias.abs() + 1)).all()
    for one, reference in zip(gradients, wanted, strict=True):
        size = reference.abs().amax(-1, keepdim=True)
        smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        assert ((one.double() - reference).abs() <= 8 * unit * size + smallest).all()


def test_the_largest_rows_need_no_subnormal_numbers():
    """Their 1/RMS is one."""
    x = torch.full((1, N), 3e38)
    assert torch.set_flush_denormal(True)
    try:
        y = torch.compile(usual_norms, fullgraph=True, backend="aot_eager")(x, -x / 2, torch.ones(N), torch.zeros(N))
    finally:
        torch.set_flush_denormal(False)
    for normed in y[:2]:
        torch.testing.assert_close(normed, torch.ones(1, N))


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


@pytest.mark.parametrize("trainable", ["both", "input"])
def test_second_derivatives_of_a_graph_that_autograd_runs(trainable):
    """backend="eager": no compiler refuses them."""
    x, weight = torch.randn(3, 40), torch.rand(40) + 0.5

    def penalty(function):
        given = x.clone().requires_grad_(), weight.clone().requires_grad_(trainable == "both")
        y = function(*given)
        (dx,) = torch.autograd.grad(y.pow(3).sum(), given[0], create_graph=True)
        return torch.autograd.grad(dx.square().sum(), [t for t in given if t.requires_grad])

    def norm(x, weight):
        return rms_norm(x, 40, weight, 1e-5)

    found = penalty(torch.compile(norm, backend="eager", fullgraph=True))
    torch.testing.assert_close(found, penalty(norm), rtol=1e-4, atol=1e-3)
