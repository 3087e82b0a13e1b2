"""rms_norm_rotary against the oracle and against Hugging Face's sequence, its derivatives, its operator, its errors."""

import re

import pytest
import torch
from torch.autograd.gradcheck import gradcheck, gradgradcheck

import composites
from rmsnorm.spec import check_spec
from rmsnorm.torch import dispatch, rms_norm, rms_norm_rotary
from rmsnorm.torch.rotary import eager
from rmsnorm.torch.rotary.composite import rotary_backward
from rotary_cases import CASES, conforms, kernels_conform, make_inputs, through


@pytest.mark.every_level
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels(case):
    kernels_conform(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_composite(case):
    inputs = make_inputs(case)
    conforms(case, through(composites.rms_norm_rotary, case, inputs), inputs, composite=True)


@pytest.mark.parametrize("case", CASES[::3], ids=str)
def test_backward_composite(case):
    inputs = make_inputs(case)
    spec = check_spec("rms", case.n, case.eps, 1.0, case.zero_centered)
    tensors = (getattr(inputs, name) for name in eager.ROTARY_BACKWARD.names)
    names = ("dq", "dk", "dq_weight", "dk_weight")
    results = dict(zip(names, rotary_backward(spec, *tensors, (True,) * 4), strict=True))
    results |= {name: t for name, t in through(composites.rms_norm_rotary, case, inputs).items() if name in ("q", "k")}
    conforms(case, {k: t for k, t in results.items() if t is not None}, inputs, composite=True)


def served(monkeypatch):
    """The results of :func:`rms_norm_rotary`, which fails where a kernel leaves the work to another way."""

    def fail(*_):
        raise AssertionError("the composite ran")

    monkeypatch.setattr(eager, "ROTARY", eager.ROTARY._replace(check=fail))
    monkeypatch.setattr(eager, "ROTARY_BACKWARD", eager.ROTARY_BACKWARD._replace(check=fail))


def drawn(dtype, heads=(6, 2), positions=5, n=16, width=None, batch=3):
    def rows(h):
        return torch.randn(batch, positions, h, n, dtype=dtype).transpose(1, 2)

    angle = torch.randn(batch, positions, (width or n) // 2).repeat(1, 1, 2)
    q, k = map(rows, heads)
    return q, k, angle.cos().to(dtype), angle.sin().to(dtype), torch.randn(n, dtype=dtype), torch.randn(n, dtype=dtype)


def hugging_face(q, k, cos, sin, q_weight, k_weight, eps, zero_centered=False, norm=rms_norm):
    """As in transformers' modeling_qwen3.py, and with part of the elements rotated as in modeling_qwen3_next.py."""

    def rotate_half(x):
        a, b = x.chunk(2, -1)
        return torch.cat((-b, a), -1)

    def embedded(x, weight):
        x = norm(x, x.shape[-1], weight, eps, zero_centered=zero_centered, casting="llama")
        x, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
        y = x * cos.unsqueeze(1) + rotate_half(x) * sin.unsqueeze(1)
        return torch.cat((y, rest.to(y.dtype)), -1)

    return embedded(q, q_weight), embedded(k, k_weight)


@pytest.mark.every_level
@pytest.mark.parametrize("zero_centered", [False, True])
@pytest.mark.parametrize("width", [None, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_llama_casting_is_hugging_faces_sequence(dtype, width, zero_centered, monkeypatch):
    tensors = drawn(dtype, n=40, width=width, positions=31)
    options = {"zero_centered": zero_centered, "casting": "llama"}
    for function, norm in ((composites.rms_norm_rotary, composites.rms_norm), (rms_norm_rotary, rms_norm)):
        expected = hugging_face(*tensors, 1e-6, zero_centered, norm)
        for one, other in zip(function(*tensors, 1e-6, **options), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    served(monkeypatch)
    assert eager.run(eager.ROTARY, check_spec("rms", 40, 1e-6, 1.0, *options.values()), tensors)


@pytest.mark.parametrize("others", [torch.float32, torch.bfloat16], ids=str)
def test_llama_casting_promotes(others):
    q, k, cos, sin, *_ = drawn(torch.bfloat16)
    weights = torch.randn(2, 16, dtype=others)
    found = rms_norm_rotary(q, k, cos, sin, *weights, 1e-6, casting="llama")
    for one, other in zip(found, hugging_face(q, k, cos, sin, *weights, 1e-6, norm=composites.rms_norm), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)  # compares the dtypes too


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_llama_casting(dtype, monkeypatch):
    tensors = [t.requires_grad_() if i not in (2, 3) else t for i, t in enumerate(drawn(dtype))]
    leaves = [tensors[i] for i in (0, 1, 4, 5)]
    dy = [torch.randn_like(t) for t in tensors[:2]]
    exact = torch.autograd.grad(rms_norm_rotary(*(t.float() for t in tensors), 1e-6), leaves, [t.float() for t in dy])
    served(monkeypatch)
    found = torch.autograd.grad(rms_norm_rotary(*tensors, 1e-6, casting="llama"), leaves, dy)
    unit = torch.finfo(dtype).eps
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=8 * unit, atol=32 * unit)


LAYOUTS = {
    "transposed": lambda h: torch.randn(2, 5, h, 16).transpose(1, 2),
    "heads first": lambda h: torch.randn(2, h, 5, 16),
    "a slice of qkv": lambda h: torch.randn(2, 5, 12 * 16)[..., 16 : 16 + 16 * h].view(2, 5, h, 16).transpose(1, 2),
    "tokens": lambda h: torch.randn(7, h, 16).transpose(0, 1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_attention_are_not_copied(layout, monkeypatch):
    q, k = map(LAYOUTS[layout], (6, 2))
    cos, sin = torch.randn(2, *q.shape[-2:])
    expected = composites.rms_norm_rotary(q, k, cos, sin)
    served(monkeypatch)
    results = rms_norm_rotary(q.requires_grad_(), k.requires_grad_(), cos, sin)
    gradients = torch.autograd.grad(results, (q, k), results)
    for y, dx, x, exact in zip(results, gradients, (q, k), expected, strict=True):
        torch.testing.assert_close(y, exact)
        assert y.stride() == dx.stride() == torch.empty_like(x).stride()


EACH = pytest.mark.parametrize("options", [{}, {"zero_centered": True}], ids=str)
THOROUGH = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}


@EACH
def test_derivatives_of_every_order(options):
    tensors = drawn(torch.float64, (2, 1), 1, 6, 4, batch=2)
    given = [t.detach().requires_grad_() for t in tensors]
    constant = [t.detach().requires_grad_(i not in (2, 3)) for i, t in enumerate(tensors)]

    def function(*tensors):
        return rms_norm_rotary(*tensors, 1e-3, **options)

    assert gradcheck(function, constant, **THOROUGH)
    assert gradgradcheck(function, constant, check_fwd_over_rev=True)
    assert gradcheck(function, given)


@pytest.mark.parametrize("trainable", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (1, 0, 0, 1)], ids=str)
@pytest.mark.parametrize("create_graph", [False, True])
def test_frozen_arguments(trainable, create_graph):
    q, k, cos, sin, *weights = (t.detach() for t in drawn(torch.float64))
    given = [t.requires_grad_() for t in (q, k, *weights)]
    full = torch.autograd.grad(sum(y.pow(3).sum() for y in rms_norm_rotary(q, k, cos, sin, *weights)), given)
    some = [a.detach().requires_grad_(bool(t)) for a, t in zip(given, trainable, strict=True)]
    results = rms_norm_rotary(*some[:2], cos, sin, *some[2:])
    sum(y.pow(3).sum() for y in results).backward(create_graph=create_graph)
    for argument, gradient, wanted in zip(some, full, trainable, strict=True):
        assert (argument.grad is not None) == bool(wanted)
        if wanted:
            torch.testing.assert_close(argument.grad.detach(), gradient, rtol=1e-9, atol=1e-11)


def test_one_of_the_results_is_used():
    q, k, *others = drawn(torch.float32)
    leaves = [t.requires_grad_() for t in (q, k)]
    k.data[..., 0, 0] = 0.5
    q.data[..., 0, 0] = torch.inf  # of no consequence
    dq, dk = torch.autograd.grad(rms_norm_rotary(*leaves, *others)[1].sum(), leaves, allow_unused=True)
    assert dq is None
    assert dk.any()
    assert dk.isfinite().all()


def test_vmap():
    tensors = drawn(torch.float32)

    def loss(q, k, cos, sin, *weights):
        return sum(y.tanh().sum() for y in rms_norm_rotary(q, k, cos, sin, *weights))

    found = torch.vmap(torch.func.grad(loss), in_dims=(0, 0, 0, 0, None, None))(*tensors)
    each = [torch.func.grad(loss)(*(t[i] for t in tensors[:4]), *tensors[4:]) for i in range(3)]
    torch.testing.assert_close(found, torch.stack(each), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("casting", "positions", "backend"), [("once", 9, "inductor"), ("llama", 1, "aot_eager")])
def test_compiled_is_eager(casting, positions, backend):
    """As the operator, and where the call is small as the expression."""
    torch._dynamo.reset()
    compiled = torch.compile(rms_norm_rotary, fullgraph=True, dynamic=positions > 1, backend=backend)
    tensors = [t.detach() for t in drawn(torch.float32, (4, 2), positions)]
    given = [tensors[i].requires_grad_() for i in (0, 1, 4, 5)]
    results = []
    for function in (compiled, rms_norm_rotary):
        y = function(*tensors, 1e-5, casting=casting)
        results.append((*y, *torch.autograd.grad(sum(t.sin().sum() for t in y), given)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-6, atol=1e-6)
        assert positions == 1 or one.stride() == other.stride()


def test_compiled_with_trainable_angles():
    torch._dynamo.reset()
    tensors = [t.detach().requires_grad_() for t in drawn(torch.float32)]
    compiled = torch.compile(rms_norm_rotary, fullgraph=True, backend="aot_eager")
    found, expected = (
        torch.autograd.grad(sum(t.sin().sum() for t in function(*tensors)), tensors)
        for function in (compiled, composites.rms_norm_rotary)
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_operator():
    tensors = [t.detach() for t in drawn(torch.float32)]
    for i in (0, 1, 4, 5):
        tensors[i].requires_grad_()
    operators = torch.ops.rmsnorm
    torch.library.opcheck(operators.rms_norm_rotary, (*tensors, 1e-5, True, "once"))
    gradients = tuple(torch.randn_like(t) for t in tensors[:2])
    wants = [True, False, True, True]
    torch.library.opcheck(operators.rms_norm_rotary_backward, (*gradients, *tensors, wants, None, False, "llama"))
    tensors[2].requires_grad_()
    with pytest.raises(NotImplementedError, match="no gradient of cos and sin"):
        operators.rms_norm_rotary(*tensors, None, False, "once")


@pytest.mark.parametrize("at", range(6))
def test_a_meta_tensor_among_others_is_refused_by_the_operator(at):
    tensors = drawn(torch.float32)
    for elsewhere in ([at], [i for i in range(6) if i != at]):
        mixed = [t.detach().to("meta") if i in elsewhere else t.detach() for i, t in enumerate(tensors)]
        with pytest.raises(ValueError, match="must have the device of"):
            torch.ops.rmsnorm.rms_norm_rotary(*mixed, None, False, "once")


def test_meta_and_fake():
    q, k, *others = drawn(torch.bfloat16)
    meta = [t.to("meta") for t in (q, k, *others)]
    for y, x in zip(rms_norm_rotary(*meta), (q, k), strict=True):
        assert (y.shape, y.dtype, y.stride()) == (x.shape, x.dtype, torch.empty_like(x).stride())


@pytest.mark.every_level
def test_threads_change_no_bit(set_threads):
    q, k, cos, sin, *weights = (t.detach() for t in drawn(torch.float32, (9, 3), 150, 64))
    given = [t.requires_grad_() for t in (q, k, *weights)]

    def work():
        results = rms_norm_rotary(q, k, cos, sin, *weights)
        return (*(y.detach() for y in results), *torch.autograd.grad(results, given, results))

    set_threads(1)
    alone = work()
    set_threads(2)
    for one, other in zip(alone, work(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.every_level
@pytest.mark.parametrize("exponent", [-80, 120])
def test_no_overflow_in_the_statistic(exponent):
    q, k, cos, sin, *weights = drawn(torch.float32)
    leaves = [(t * 2.0**exponent).requires_grad_() for t in (q, k)]
    results = rms_norm_rotary(*leaves, cos, sin, *weights, 0.0)
    usual = [t.requires_grad_() for t in (q, k)]
    expected = rms_norm_rotary(*usual, cos, sin, *weights, 0.0)
    torch.testing.assert_close(results, expected, rtol=2e-6, atol=1e-6)
    found = torch.autograd.grad(results, leaves, [torch.ones_like(y) for y in results])
    exact = torch.autograd.grad(expected, usual, [torch.ones_like(y) for y in results])
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one * 2.0**exponent, other, rtol=1e-5, atol=1e-5)


X = torch.randn(2, 4, 3, 8)
ANGLE = torch.randn(3, 8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (X[0, 0], X[0, 0], ANGLE, ANGLE),
            ValueError,
            "q must have the shape (…, heads, positions, head_dim), got (3, 8)",
        ),
        (
            (X, X[:1], ANGLE, ANGLE),
            ValueError,
            "k must have the shape of q with a number of heads of its own, (2, heads, 3",
        ),
        ((X, X[:, :, :, :6], ANGLE, ANGLE), ValueError, "k must have the shape of q"),
        ((X, X, ANGLE[:, :7], ANGLE[:, :7]), ValueError, "the last dimension of cos must be an even number"),
        (
            (X, X, torch.randn(3, 10), torch.randn(3, 10)),
            ValueError,
            "at most q's head_dim 8, got cos of shape (3, 10)",
        ),
        ((X, X, ANGLE[:2], ANGLE[:2]), ValueError, "cos must have the shape (2, 3, 8), q's without its heads"),
        (
            (X, X, torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8)),
            ValueError,
            "or one that broadcasts to it, got (1, 2",
        ),
        ((X, X, ANGLE, ANGLE[:1]), ValueError, "sin must have the shape of cos"),
        ((X, X, ANGLE.long(), ANGLE), TypeError, "cos must be of a floating dtype"),
        ((X, X, ANGLE, None), TypeError, "sin must be a torch.Tensor, got NoneType"),
        ((X, None, ANGLE, ANGLE), TypeError, "k must be a torch.Tensor, got NoneType"),
        ((X.numpy(), X, ANGLE, ANGLE), TypeError, "q must be a torch.Tensor, got ndarray"),
        ((X, X.to_sparse(), ANGLE, ANGLE), TypeError, "k must be dense"),
        ((X, X, ANGLE, ANGLE, torch.randn(3)), ValueError, "q_weight must have the shape normalized_shape = (8,)"),
        ((X, X, ANGLE, ANGLE, None, torch.randn(3, 8)), ValueError, "k_weight must have the shape"),
        ((X, X, ANGLE, ANGLE, None, None, -1.0), ValueError, "eps is inside the root"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_errors(arguments, error, message):
    for requires in (False, True):
        tensors = [
            t.detach().requires_grad_(requires) if isinstance(t, torch.Tensor) and t.is_floating_point() else t
            for t in arguments
        ]
        with pytest.raises(error, match=re.escape(message)):
            rms_norm_rotary(*tensors)


def test_the_operators_errors():
    with pytest.raises(ValueError, match=re.escape("q must have the shape (…, heads, positions, head_dim), got ()")):
        torch.ops.rmsnorm.rms_norm_rotary(torch.ones(()), X, ANGLE, ANGLE, None, None, None, False, "once")


def test_nested_tensors_are_refused():
    nested = torch.nested.nested_tensor([torch.randn(4, 3, 8), torch.randn(4, 2, 8)], layout=torch.jagged)
    with pytest.raises(NotImplementedError, match="neither nested tensors nor DTensors"):
        rms_norm_rotary(nested, nested, ANGLE, ANGLE)


def test_fx_records_the_call():
    graph = torch.fx.symbolic_trace(lambda q, k, c, s, w: rms_norm_rotary(q, k, c, s, w, eps=1e-6))
    assert rms_norm_rotary in {node.target for node in graph.graph.nodes}
    tensors = X, X, ANGLE, ANGLE, torch.randn(8)
    torch.testing.assert_close(graph(*tensors), rms_norm_rotary(*tensors, eps=1e-6), rtol=0, atol=0)


def test_the_way_is_the_kernels():
    assert dispatch.eager_way(X, X, ANGLE, ANGLE, None, None) == dispatch.KERNEL


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("family", "zero_centered"), [("qwen3", False), ("gemma3", True)])
def test_transformers(family, zero_centered, dtype):
    """Norms and rotation as in attention of models; the last place may differ, as their float32 statistic may."""
    modeling = pytest.importorskip(f"transformers.models.{family}.modeling_{family}")
    q, k, cos, sin, *weights = drawn(dtype, n=32, positions=40)
    norms = [getattr(modeling, {"qwen3": "Qwen3RMSNorm", "gemma3": "Gemma3RMSNorm"}[family])(32, 1e-6) for _ in "qk"]
    for norm, weight in zip(norms, weights, strict=True):
        norm.weight = torch.nn.Parameter(weight)
    expected = modeling.apply_rotary_pos_emb(norms[0](q), norms[1](k), cos, sin)
    casting = "once" if zero_centered else "llama"
    found = rms_norm_rotary(q, k, cos, sin, *weights, 1e-6, zero_centered=zero_centered, casting=casting)
    unit = torch.finfo(dtype).eps
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2 * unit, atol=4 * unit)
        if dtype == torch.bfloat16 and casting == "llama":
            assert (one == other).float().mean() > 0.999
