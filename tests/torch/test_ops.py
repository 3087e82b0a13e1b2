"""The registered operators: torch's own checks of schema, fakes, autograd registration and AOT dispatch."""

import math
import random

import pytest
import torch

import rmsnorm.torch
from rmsnorm.spec import partial_count
from rmsnorm.torch import operation, registration
from rmsnorm.torch.norm import ops as norm_ops
from rmsnorm.torch.registration import why_no_operators
from rmsnorm.torch.schemas import SCHEMAS

in_cpp = pytest.mark.skipif(why_no_operators is not None, reason=f"operators in C++: {why_no_operators}")

N, HOW, GATED = 24, (1e-5, 0.5, True, "once"), (1e-5, True, 3, 0.5)


def tensors(dtype=torch.float32, grad=True):
    x, residual, dy = (torch.randn(3, N).to(dtype).requires_grad_(grad) for _ in range(3))
    weight, bias = (torch.randn(N).requires_grad_(grad) for _ in range(2))
    return x, residual, dy, weight, bias


def arguments(name, dtype=torch.float32, grad=True):
    x, residual, dy, weight, bias = tensors(dtype, grad)
    every = [True, True, True]
    return {
        "rms_norm": [(x, [N], weight, bias, *HOW), (x, [N], None, None, None, 1.0, False, "once")],
        "layer_norm": [(x, [N], weight, bias, 1e-5), (x.detach(), [N], None, None, 1e-5)],
        "add_rms_norm": [(x, residual, [N], weight, bias, *HOW)],
        "rms_norm_backward": [
            (dy, x, [N], weight, bias, None, every, *HOW),
            (dy, x, [N], weight, None, residual, [True, False, False], *HOW),
        ],
        "rms_norm_gated": [
            (x, residual, [N], weight, *GATED),
            (x, residual.detach(), [N], None, None, False, 1, 1.0),
        ],
        "rms_norm_gated_backward": [
            (dy, x, residual, [N], weight, every, *GATED),
            (dy, x, residual, [N], weight, [False, True, False], None, False, 1, 1.0),
        ],
        "layer_norm_backward": [(dy, x, [N], weight, bias, every, 1e-5)],
    }[name]


NAMES = ("rms_norm", "layer_norm", "add_rms_norm", "rms_norm_gated")
NAMES += ("rms_norm_backward", "layer_norm_backward", "rms_norm_gated_backward")
ELSEWHERE = ("recurrent", "recurrent_backward")  # test_rnn_graphs.py
ELSEWHERE += ("rms_norm_rotary", "rms_norm_rotary_backward")  # test_rotary.py
ELSEWHERE += ("xhat_in_two_ranges",)  # test_compiled.py


def test_every_operator_is_checked_here():
    registered = {n for n in torch._C._dispatch_get_all_op_names() if n.startswith("rmsnorm::")}
    registered = {name.removeprefix("rmsnorm::").split(".")[0] for name in registered}
    left_by_cpp = set() if why_no_operators else {f"_{name}" for name in NAMES}
    assert registered == {*NAMES, *ELSEWHERE} | left_by_cpp
    assert set(SCHEMAS) == set(NAMES)
    for name, schema in SCHEMAS.items():
        assert str(getattr(torch.ops.rmsnorm, name).default._schema) == f"rmsnorm::{name}{schema}"


def test_torchs_table_of_decompositions_has_no_operator_of_ours():
    """Inductor refuses to compile a call of an operator in it where the environment sets CI."""
    assert not [op for op in torch._decomp.decomposition_table if op.namespace == "rmsnorm"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(name, grad, dtype):
    """In bfloat16 without AOTAutograd's test: it traces the same graph in both, and takes most of the time."""
    operator = getattr(torch.ops.rmsnorm, name).default
    tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
    for given in arguments(name, dtype, grad):
        if dtype == torch.bfloat16:
            torch.library.opcheck(operator, given, test_utils=tests)
        else:
            torch.library.opcheck(operator, given, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
def test_a_meta_tensor_among_others_is_refused(name, grad):
    """torch takes such a call to the fake, whose results on the CPU are memory that was never written."""
    operator = getattr(torch.ops.rmsnorm, name)
    for given in arguments(name, grad=grad):
        tensors = [i for i, t in enumerate(given) if isinstance(t, torch.Tensor)]
        for at in tensors:
            for elsewhere in ([at], [i for i in tensors if i != at]):
                mixed = [t.to("meta") if i in elsewhere else t for i, t in enumerate(given)]
                if len(tensors) > 1:
                    with pytest.raises(ValueError, match="must have the device of"):
                        operator(*mixed)
        outputs = operator(*(t.to("meta") if i in tensors else t for i, t in enumerate(given)))
        assert all(t.is_meta for t in torch.utils._pytree.tree_leaves(outputs))


@pytest.mark.parametrize("name", NAMES)
def test_layouts_that_fakes_promise(name):
    """Strides of real results are those of the fakes, for inputs that are not contiguous and for no rows."""
    operator = getattr(torch.ops.rmsnorm, name).default

    def strided(t):
        return torch.randn(N, 3).t() if isinstance(t, torch.Tensor) and t.dim() == 2 else t

    def empty(t):
        return torch.randn(0, N) if isinstance(t, torch.Tensor) and t.dim() == 2 else t

    for given in arguments(name, grad=False):
        for change in (strided, empty):
            torch.library.opcheck(operator, tuple(map(change, given)), test_utils=("test_schema", "test_faketensor"))


def test_operators_are_the_functions():
    x, residual, _, weight, bias = tensors(grad=False)
    options = {"bias": bias, "p": 0.5, "zero_centered": True}
    ops = torch.ops.rmsnorm
    assert torch.equal(
        ops.rms_norm(x, [N], weight, bias, *HOW), rmsnorm.torch.rms_norm(x, (N,), weight, 1e-5, **options)
    )
    assert torch.equal(ops.layer_norm(x, [N], weight, bias, 1e-5), rmsnorm.torch.layer_norm(x, (N,), weight, bias))
    for one, other in zip(
        ops.add_rms_norm(x, residual, [N], weight, bias, *HOW),
        rmsnorm.torch.add_rms_norm(x, residual, (N,), weight, 1e-5, **options),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_derivatives_of_operators():
    """Of the forward operators to third order, since a graph that holds them can be differentiated as any other."""
    x, residual, _, weight, bias = (t.detach().double()[..., :4].requires_grad_() for t in tensors())

    def norm(x, weight, bias):
        return torch.ops.rmsnorm.rms_norm(x, [4], weight, bias, *HOW)

    def added(x, residual, weight, bias):
        return torch.ops.rmsnorm.add_rms_norm(x, residual, [4], weight, bias, *HOW)

    def layer(x, weight, bias):
        return torch.ops.rmsnorm.layer_norm(x, [4], weight, bias, 1e-3)

    def gated(x, gate, weight):
        return torch.ops.rmsnorm.rms_norm_gated(x, gate, [4], weight, 1e-3, False, 2, 0.5)

    for function, given in (
        (norm, (x, weight, bias)),
        (gated, (x, residual, weight)),
        (added, (x, residual, weight, bias)),
        (layer, (x, weight, bias)),
    ):
        assert torch.autograd.gradcheck(function, given)
        assert torch.autograd.gradgradcheck(function, given)

    def first(x, weight, bias):
        return torch.autograd.grad(norm(x, weight, bias).sin().sum(), (x, weight), create_graph=True)

    assert torch.autograd.gradgradcheck(first, (x, weight, bias))


def test_a_gradient_that_depends_on_the_input():
    """Where dy is itself a function of x, its part must be counted once, and by autograd, not by the operator."""
    x, _, _, weight, bias = (t.detach().double().requires_grad_() for t in tensors())

    def curvature(norm):
        (first,) = torch.autograd.grad(norm(x).sin().sum(), x, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), (x, weight))

    found = curvature(lambda x: torch.ops.rmsnorm.rms_norm(x, [N], weight, bias, *HOW))
    expected = curvature(lambda x: x * (x[:, : N // 2].pow(2).mean(-1, True) + 1e-5).rsqrt() * (1 + weight) + bias)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


# ---- the CPU's operators in C++ ------------------------------------------------------------------------------------


@pytest.fixture
def _no_python(monkeypatch):
    """Every way from the dispatcher into Python's implementations raises. They are called by global names."""

    def refuse(*_):
        raise AssertionError("Python was entered")

    monkeypatch.setattr(registration, "transformed", refuse)
    monkeypatch.setattr(operation, "kernels_of", refuse)
    monkeypatch.setattr(norm_ops, "forward", refuse)


@in_cpp
@pytest.mark.usefixtures("_no_python")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_usual_calls_do_not_enter_python(name, dtype):
    operator = getattr(torch.ops.rmsnorm, name).default
    for given in arguments(name, dtype, grad=True):
        with torch.no_grad():
            operator(*(t.to(dtype) if isinstance(t, torch.Tensor) and t.dim() == 2 else t for t in given))
    with pytest.raises(AssertionError, match="Python was entered"):  # or the fixture would see nothing
        operator(*arguments(name)[0])


@in_cpp
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_cpp_is_python_bit_for_bit(name, dtype):
    """Also for what it leaves to Python: results, strides and errors."""
    ours, pythons = getattr(torch.ops.rmsnorm, name), getattr(torch.ops.rmsnorm, f"_{name}")

    def outcome(operator, given):
        try:
            found = torch.utils._pytree.tree_leaves(operator(*given))
        except Exception as error:
            return type(error), str(error).partition("\n")[0]
        return [(t.dtype, t.shape, t.stride(), t.nan_to_num(7.5).tolist()) for t in found]

    def each(change):
        return lambda given: tuple(change(t) if isinstance(t, torch.Tensor) else t for t in given)

    def rows(change):
        return each(lambda t: change(t) if t.dim() == 2 else t)

    def others(change):
        return lambda given: tuple(a if isinstance(a, torch.Tensor) else change(a) for a in given)

    changes = (
        lambda given: given,
        each(lambda t: t.to(dtype)),
        rows(lambda t: t.t().contiguous().t()),  # its rows do not lie together
        rows(lambda t: t.repeat(1, 2)[:, :N]),
        rows(lambda t: t[:0]),
        rows(lambda t: t.to(torch.float64)),  # parameters stay float32
        rows(torch._neg_view),
        rows(lambda t: t * 1e30),
        rows(lambda t: t[:, : N // 2]),  # not the normalised shape
        rows(lambda t: t.int()),
        others(lambda a: [N + 1] if a == [N] else a),
        others(lambda a: [] if a == [N] else a),
        others(lambda a: [] if a == [True] * 3 else a),
        others(lambda a: -1.0 if type(a) is float else a),
        others(lambda a: math.inf if a == 1e-5 else a),
        others(lambda a: "llama" if a == "once" else a),
        others(lambda a: "twice" if a == "once" else a),
        others(lambda a: 7 if type(a) is int else a),
    )
    for given in arguments(name, dtype, grad=False):
        for i, change in enumerate(changes):
            changed = change(given)
            assert outcome(ours, changed) == outcome(pythons, changed), i


@in_cpp
@pytest.mark.usefixtures("_no_python")
def test_count_of_the_statistic_without_python():
    """The C++ rule of k = ⌈n·p⌉ against the exact one, seen in a row whose first k elements differ from the others."""
    r = random.Random(3)
    for n in (1, 2, 3, 7, 24, 30, 97, 640, 4099, 10**7):
        for p in (0.1, 1 / 3, 0.999, 1e-300, r.random(), r.randint(1, n) / n, 1 - 2**-53, math.nextafter(0.3, 0)):
            k = partial_count(n, p)
            x = torch.zeros(1, n)
            x[:, k - 1 : k + 1] = torch.tensor([1.0, 1e3])[: n - k + 1]
            y = torch.ops.rmsnorm.rms_norm(x, [n], None, None, 0.0, p, False, "once")
            assert y[0, k - 1].item() == pytest.approx(math.sqrt(k), rel=1e-6), (n, p)


def test_operators_under_vmap():
    _, _, _, weight, bias = tensors(grad=False)
    many = torch.randn(5, 3, N)
    found = torch.vmap(lambda x: torch.ops.rmsnorm.rms_norm(x, [N], weight, bias, *HOW))(many)
    expected = torch.stack([torch.ops.rmsnorm.rms_norm(one, [N], weight, bias, *HOW) for one in many])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_add_rms_norm_of_which_only_the_sum_is_used():
    """As in the eager call, the gain has no gradient then, not one of zeros."""
    x, z = torch.randn(3, 8, requires_grad=True), torch.randn(3, 8, requires_grad=True)
    w = torch.randn(8, requires_grad=True)
    _, total = torch.ops.rmsnorm.add_rms_norm(x, z, [8], w, w, None, 1.0, False, "once")
    dx, dz, dw = torch.autograd.grad(total.sin().sum(), (x, z, w), allow_unused=True)
    assert dw is None
    assert torch.equal(dx, (x + z).cos())
    assert torch.equal(dz, dx)


@pytest.mark.parametrize(
    "run",
    [
        lambda x, w: torch.ops.rmsnorm.rms_norm(x, [8], w, None, None, 0.5, False, "once"),
        lambda x, w: torch.ops.rmsnorm.layer_norm(x, [8], w, w, None),
        lambda x, w: torch.ops.rmsnorm.add_rms_norm(x, x, [8], w, None, None, 1.0, False, "once")[0],
        lambda x, w: torch.ops.rmsnorm.rms_norm_gated(x, x, [8], w, None, False, 2, 1.0),
    ],
)
def test_inputs_made_in_inference_mode(run):
    x, w = torch.randn(3, 8), torch.randn(8, requires_grad=True)
    with torch.inference_mode():
        inferred = x.clone()
    found, expected = (torch.autograd.grad(run(t, w).square().sum(), w)[0] for t in (inferred, x))
    assert torch.equal(found, expected)
