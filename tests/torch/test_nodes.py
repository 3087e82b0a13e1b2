"""The calls and autograd nodes in C++: what they serve, what they leave alone, the same bits as through Python."""

import contextlib
import threading
from itertools import product

import pytest

torch = pytest.importorskip("torch")

from torch.utils.checkpoint import checkpoint  # noqa: E402

from rmsnorm import native as native_codes  # noqa: E402
from rmsnorm.torch import add_rms_norm, bindings, functional, layer_norm, rms_norm  # noqa: E402
from rmsnorm.torch.norm import eager  # noqa: E402
from rmsnorm.torch.norm.eager import nodes, why_no_nodes  # noqa: E402

if nodes is None:
    pytest.skip(f"C++ nodes: {why_no_nodes}", allow_module_level=True)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def tensors(rows=5, n=37, dtype=torch.float32, requires_grad=True, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(requires_grad)

    return draw(rows, n), draw(rows, n), draw(n), draw(n)


def usual(x, *, weight=None, bias=None, shape=None, eps=1e-5, p=1.0, zero_centered=False, casting="once", out=None):
    shape = x.shape[-1:] if shape is None else shape
    return nodes.rms_norm(x, shape, weight, bias, eps, p, zero_centered, casting, out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_usual_calls_are_served(dtype, requires_grad):
    x, residual, weight, bias = tensors(dtype=dtype, requires_grad=requires_grad)
    shape = (37,)
    served = [
        usual(x),
        usual(x, weight=weight, bias=bias, p=0.3, eps=None, zero_centered=True, casting="llama"),
        usual(x, weight=torch.nn.Parameter(weight.detach(), requires_grad), shape=[37], p=1),
        usual(x[1:, :], shape=37),
        nodes.layer_norm(x, shape, weight, bias, 1e-5, None),
        *nodes.add_rms_norm(x, residual, shape, weight, bias, 1e-5, 0.5, False, "once"),
    ]
    assert all(y.dtype == dtype and (y.grad_fn is not None) == requires_grad for y in served)
    with torch.no_grad():
        assert usual(x, weight=weight).grad_fn is None
    with torch.inference_mode():
        assert usual(x, weight=weight).is_inference()


def test_into_given_memory():
    x, _, weight, bias = tensors(requires_grad=False)

    def layer(out):
        return nodes.layer_norm(x, 37, weight, bias, 1e-5, out)

    for norm in (layer, lambda out: usual(x, weight=weight, out=out)):
        out, expected = torch.empty_like(x), norm(None)
        before = out._version
        assert norm(out) is out
        assert torch.equal(out, expected)
        assert out._version == before + 1
        with torch.inference_mode():
            assert torch.equal(norm(torch.empty_like(x)), expected)
    assert usual(x, out=torch.empty(5, 36)) is None
    assert usual(x, out=torch.empty_like(x, dtype=torch.float64)) is None
    assert usual(x, out=torch.empty_like(x).requires_grad_()) is None
    assert usual(x.clone().requires_grad_(), out=torch.empty_like(x)) is None
    assert usual(x[1:], out=x[:-1]) is None  # what is still to be read
    own = x.clone()
    assert torch.equal(usual(own, out=own), usual(x))


def watched(x):
    """Calls that somebody else has to see."""

    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    def under(mode):
        with mode:
            return usual(x)

    found = []
    torch.vmap(lambda row: found.append(usual(row)) or row)(x)
    torch.func.grad(lambda x: found.append(usual(x)) or x.sum())(x)
    torch.func.jvp(lambda x: found.append(usual(x)) or x, (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        found.append(usual(torch.autograd.forward_ad.make_dual(x, x)))
    return [*found, under(Mode()), under(torch._subclasses.FakeTensorMode())]


def test_everything_else_is_left_alone():
    class Subclass(torch.Tensor):
        pass

    x = torch.randn(4, 8)
    wrong = [
        {"shape": (7,)},
        {"shape": ()},
        {"shape": "8"},
        {"p": 0.0},
        {"p": 1.5},
        {"p": None},
        {"p": float("nan")},
        {"eps": -1.0},
        {"eps": "1"},
        {"zero_centered": 1},
        {"casting": "twice"},
        {"casting": None},
        {"weight": torch.randn(7)},
        {"weight": torch.ones(8, dtype=torch.int32)},
        {"weight": [1.0] * 8},
        {"weight": torch.randn(8).double(), "casting": "llama"},  # the result is float64
    ]
    assert [usual(x, **arguments) for arguments in wrong] == [None] * len(wrong)
    others = [
        x.to("meta"),
        x.to_sparse(),
        x.int(),
        x.to(torch.complex64),
        x.to(torch.complex64).conj().imag,
        x.as_subclass(Subclass),
        x.t(),  # rows do not lie together
        torch._subclasses.FakeTensorMode().from_tensor(x),
        None,
        x.numpy(),
    ]
    assert [usual(other, shape=(8,)) for other in others] == [None] * len(others)
    assert usual(x, shape=(8,), weight=torch.randn(8).as_subclass(Subclass)) is None
    assert nodes.add_rms_norm(x, x.double(), (8,), None, None, None, 1.0, False, "once") is None
    assert nodes.add_rms_norm(x, x[:2], (8,), None, None, None, 1.0, False, "once") is None
    assert watched(x) == [None] * 6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("needs", list(product([False, True], repeat=4)))
def test_the_same_bits_as_through_python(dtype, needs, monkeypatch):
    """Also of gradients that are expanded, transposed, or asked for of the sum alone."""
    x, residual, weight, bias = (t.detach() for t in tensors(rows=33, dtype=dtype))
    dy, dsum, _, _ = tensors(rows=33, dtype=dtype, requires_grad=False, seed=1)
    expanded, transposed = dy[:1].expand(33, 37), dy.t().contiguous().t()

    def all_of_it():
        leaves = [t.clone().requires_grad_(need) for t, need in zip((x, residual, weight, bias), needs, strict=True)]
        of = [leaf for leaf in leaves if leaf.requires_grad]
        found = []
        for options in ({}, {"p": 0.2, "zero_centered": True}, {"casting": "llama", "eps": 1e-3}):
            a, r, w, b = leaves
            normed, total = add_rms_norm(a, r, (37,), w, bias=b, **options)
            outputs = {
                "rms": [(rms_norm(a, 37, w, bias=b, **options), dy)],
                "expanded": [(rms_norm(a, (37,), w, **options), expanded)],
                "transposed": [(rms_norm(a, (37,), None, bias=b, **options), transposed)],
                "layer": [(layer_norm(a, (37,), w, b), dy)],
                "both": [(normed, dy), (total, dsum)],
                "sum": [(total, dsum)],
                "normed": [(normed, dy)],
            }
            for pairs in outputs.values():
                found += [y for y, _ in pairs]
                pairs = [(y, d) for y, d in pairs if y.requires_grad]
                if pairs:
                    ys, ds = zip(*pairs, strict=True)
                    found += torch.autograd.grad(ys, of, ds, allow_unused=True, retain_graph=True)
        return found

    in_cpp = all_of_it()
    with python_kernels():
        by_python_kernels = all_of_it()
    monkeypatch.setattr(functional, "nodes", None)
    in_python = all_of_it()
    assert len(in_cpp) == len(by_python_kernels) == len(in_python)
    for *ways, b in zip(in_cpp, by_python_kernels, in_python, strict=True):
        for a in ways:
            assert (a is None) == (b is None)
            if a is not None:
                assert (a.dtype, a.stride()) == (b.dtype, b.stride())
                assert torch.equal(a, b)


# ---- kernels in Python, as CUDA tensors have them ----


@contextlib.contextmanager
def python_kernels(norm=None, norm_backward=None):
    """The C++ calls reach a CPU's kernels through Python functions; without others, the native ones."""
    of = bindings.kernels_of(torch.empty(0))
    nodes.serve("cpu", norm or of.norm, norm_backward or of.norm_backward)
    try:
        yield
    finally:
        nodes.serve("cpu", None, None)


def test_python_kernels_get_what_the_native_ones_do():
    native = bindings.kernels_of(torch.empty(0))
    seen = {"forward": [], "backward": []}

    def forward(*args):
        seen["forward"].append(args)
        return native.norm(*args)

    def backward(*args):
        seen["backward"].append(args)
        return native.norm_backward(*args)

    x, residual, weight, bias = tensors()
    with python_kernels(forward, backward):
        normed, total = add_rms_norm(x, residual, [37], weight, eps=1e-3, p=0.25, zero_centered=True)
        torch.autograd.grad((normed, total), (x, weight), (normed, total))
        y = layer_norm(x, 37, weight, bias)
        torch.autograd.grad(y, bias, y)
        rms_norm(x.detach(), (37,), out=torch.empty_like(x))
    first, second, third = seen["forward"]
    assert all(a is b for a, b in zip(first[:6], (x, residual, weight, None, normed, total), strict=True))
    flags = native_codes.FRESH | native_codes.ZERO_CENTERED | bindings.FLAGS
    assert first[6:] == (0, (37,), 1e-3, 0.25, flags)
    assert second[6:] == (1, (37,), 1e-5, 1.0, bindings.FLAGS | native_codes.FRESH)
    assert third[-1] == bindings.FLAGS
    (dy, plus, of, gain, dx, dweight, dbias, *how), other = seen["backward"]
    assert all(map(torch.equal, (dy, plus, of, gain), (normed, total, total, weight)))
    assert (dx.shape, dweight.shape, dbias) == (x.shape, weight.shape, None)
    assert how == [0, (37,), 1e-3, 0.25, flags & ~native_codes.FRESH]
    assert [t is not None for t in other[4:7]] == [False, False, True]


def test_python_kernels_get_numbers_whatever_they_came_in():
    """Plans are kept by them: a tensor may hold another number at the next call."""
    seen = []
    x, eps, p = torch.randn(3, 37), torch.tensor(1e-3), torch.tensor(0.25)
    with python_kernels(norm=lambda *args: seen.append(args[8:10]) or True):
        usual(x, eps=eps, p=p)
        eps.fill_(2.0)
        usual(x, eps=eps, p=1)
        usual(x, eps=None)
    # None is the machine epsilon of the computation dtype.
    assert [tuple(map(type, how)) for how in seen] == [(float, float)] * 3
    expected = [(float(torch.tensor(1e-3)), 0.25), (2.0, 1.0), (torch.finfo(torch.float32).eps, 1.0)]
    assert seen == expected


def test_python_kernels_that_decline_or_fail():
    x, _, weight, bias = tensors()
    expected = gradients(norm, x, weight, bias)
    with python_kernels(norm=lambda *_: False):
        assert usual(x, weight=weight) is None
    with python_kernels(norm_backward=lambda *_: False):
        assert all(map(torch.equal, gradients(norm, x, weight, bias), expected))
    with python_kernels(norm=lambda *_: 1 / 0), pytest.raises(ZeroDivisionError):
        usual(x, weight=weight)
    with python_kernels(norm_backward=lambda *_: 1 / 0), pytest.raises(ZeroDivisionError):
        gradients(norm, x, weight, bias)
    assert all(map(torch.equal, gradients(norm, x, weight, bias), expected))


def test_calls_are_told_apart_as_in_python():
    """By describe, for plans of launches: two calls are the same in C++ if and only if they are in Python."""
    plans = pytest.importorskip("rmsnorm.torch.triton.plans", reason="Triton is not installed")
    base = torch.randn(64)
    several = [None, base[:6].view(2, 3), base[:6].view(3, 2), base[8:14].view(2, 3), base[:12:2].view(2, 3)]
    several += [base[:6].view(3, 2).t(), base[:6].view(1, 2, 3)]
    several += [base[:6].view(2, 3).bfloat16(), base[:6].double().view(2, 3)]
    several += [torch.complex(base, base).conj().imag[:6].view(2, 3), torch.empty(0, 3), torch.empty(2, 0)]
    calls = list(product(several, repeat=3))
    kinds = {}
    for call in calls:
        said, addresses, bits = plans._describe(call)
        in_cpp = nodes.describe(call)
        assert (list(in_cpp[1]), in_cpp[2]) == (list(addresses), bits)
        kinds.setdefault(said, set()).add(in_cpp[0])
    assert all(len(found) == 1 for found in kinds.values())
    assert len(set().union(*kinds.values())) == len(kinds) > 1000


def test_tensors_without_a_storage_are_not_described():
    plans = pytest.importorskip("rmsnorm.torch.triton.plans", reason="Triton is not installed")
    sparse = torch.eye(3).to_sparse()
    assert nodes.describe((torch.ones(1), sparse)) is None
    assert plans._describe((torch.ones(1), sparse)) is None


@pytest.mark.parametrize("offset", [0, 8])
def test_freed_memory_is_not_described(offset):
    plans = pytest.importorskip("rmsnorm.torch.triton.plans", reason="Triton is not installed")
    gone = torch.ones(16 + offset)[offset:]
    gone.untyped_storage().resize_(0)
    for call in ((gone, None), (torch.ones(1), gone)):
        assert nodes.describe(call) is None
        assert plans._describe(call) is None
    with pytest.raises(TypeError, match="tensors and None"):
        nodes.describe((1,))


def gradients(function, *leaves):
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    y = function(*leaves)
    return torch.autograd.grad((y * y.detach().cos()).sum(), leaves)


def norm(x, weight, bias):
    return rms_norm(x, (37,), weight, bias=bias, p=0.5)


def test_checkpointing_and_hooks_on_what_is_saved():
    x, _, weight, bias = tensors()
    plain = gradients(norm, x, weight, bias)
    again = gradients(lambda *leaves: checkpoint(norm, *leaves, use_reentrant=False), x, weight, bias)
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: seen.append(t.shape) or t.numpy(force=True), torch.from_numpy
    ):
        hooked = gradients(norm, x, weight, bias)
    assert len(seen) >= 3
    for found in (again, hooked):
        assert all(map(torch.equal, plain, found))


def test_a_graph_may_be_run_twice_if_it_is_kept():
    x, _, weight, _ = tensors()
    y = rms_norm(x, (37,), weight)
    first = torch.autograd.grad(y, (x, weight), y.detach(), retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(y, (x, weight), y.detach())))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, (x, weight), y.detach())


def test_what_is_saved_must_not_change():
    x, _, weight, _ = tensors()
    inner = x * 1
    y = rms_norm(inner, (37,), weight)
    inner.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_compiled_autograd():
    compiled_autograd = pytest.importorskip("torch._dynamo.compiled_autograd")
    x, _, weight, bias = tensors()
    plain = gradients(norm, x, weight, bias)
    with compiled_autograd._enable(torch.compile(backend="eager")):
        compiled = gradients(norm, x, weight, bias)
    assert all(map(torch.equal, plain, compiled))


def test_backward_passes_in_many_threads():
    x, _, weight, bias = tensors(rows=2048)  # enough to work without the interpreter's lock
    plain = gradients(norm, x, weight, bias)
    found = [None] * 4

    def work(i):
        found[i] = gradients(norm, x, weight, bias)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(all(map(torch.equal, plain, each)) for each in found)


def test_an_error_in_the_python_half_of_a_backward_pass_is_raised(monkeypatch):
    x, _, weight, _ = tensors()
    y = rms_norm(x, (37,), weight)
    monkeypatch.setattr(eager, "run_backward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        y.sum().backward()  # an expanded gradient, which Python copies


def test_the_profiler_names_them():
    x, residual, weight, bias = tensors()
    with torch.profiler.profile() as profiler:
        rms_norm(x, (37,), weight).sum().backward()
        layer_norm(x, (37,), weight, bias)
        add_rms_norm(x, residual, (37,), weight)
    names = {event.key for event in profiler.key_averages()}
    assert {"rmsnorm::rms_norm", "rmsnorm::layer_norm", "rmsnorm::add_rms_norm"} <= names


def test_modules_of_another_torch_are_not_used(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    module, why_not = bindings.load_nodes(eager.node_gradients)
    assert module is None
    assert "2.99.0" in why_not


# ---- with and without them ----


@pytest.fixture(params=[True, False], ids=["in C++", "in Python"])
def _both_ways(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(functional, "nodes", None)


@pytest.mark.usefixtures("_both_ways")
def test_tensors_without_memory():
    """Functionalisation's wrappers and zeros that are not stored: they say that they are on a CPU."""
    x, residual, weight, bias = tensors()
    expected = rms_norm(x, 37, weight, bias=bias)
    functionalize = torch.func.functionalize
    assert torch.allclose(functionalize(lambda x: rms_norm(x, 37, weight, bias=bias))(x), expected)
    assert torch.allclose(functionalize(lambda w: rms_norm(x, 37, w, bias=bias))(weight), expected)
    found, expected = functionalize(lambda b: layer_norm(x, 37, weight, b))(bias), layer_norm(x, 37, weight, bias)
    # x̂·g and the bias, up to 4, may cancel: two roundings of their size are left, whatever the sum's.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2 * 4 * torch.finfo(torch.float32).eps)
    pair = functionalize(lambda r: add_rms_norm(x, r, 37, weight))(residual)
    assert all(map(torch.allclose, pair, add_rms_norm(x, residual, 37, weight)))
    zeros = torch._efficientzerotensor((5, 37))
    assert torch.equal(rms_norm(zeros, 37, weight.detach()), torch.zeros(5, 37))
    assert torch.equal(rms_norm(x.detach(), 37, torch._efficientzerotensor((37,))), torch.zeros(5, 37))
    found = torch.autograd.grad(rms_norm(x, 37, weight), (x, weight), zeros)
    assert all(torch.count_nonzero(t) == 0 for t in found)


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize(("size", "gradient"), [(1e-12, 1e-33), (3e-15, 1e-28)])
@pytest.mark.parametrize("n", [64, 1024])
def test_small_rows_with_small_gradients_and_no_eps(size, gradient, n):
    """The products of the two vanish, those of the normalised row do not."""
    x, dy, _, _ = tensors(9, n, requires_grad=False)
    x, dy = (x * size).requires_grad_(), dy * gradient
    (found,) = torch.autograd.grad(rms_norm(x, n, None, 0.0), x, dy)
    wide = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(wide / wide.square().mean(-1, keepdim=True).sqrt(), wide, dy.double())
    assert (found.double() - expected).norm() < 1e-6 * expected.norm()


@pytest.mark.usefixtures("_both_ways")
def test_what_must_not_be_written():
    x = torch.randn(2, 8)
    with torch.inference_mode():
        made_there = torch.empty(2, 8)
    with pytest.raises(ValueError, match="inference mode"):
        rms_norm(x, 8, out=made_there)
    with pytest.raises(ValueError, match="float64"):
        rms_norm(torch.ones(0, 8), 8, out=torch.ones(0, 8, dtype=torch.float64))
    with pytest.raises(TypeError, match="must be dense"):
        rms_norm(x, 8, torch.ones(8).to_sparse())
