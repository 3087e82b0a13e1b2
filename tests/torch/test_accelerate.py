"""``F.rms_norm`` and ``F.layer_norm`` while they are accelerated are torch's, in all but speed and rounding."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.testing._internal.common_methods_invocations import op_db

from rmsnorm import native
from rmsnorm.torch import accelerate, rms_norm

pytestmark = pytest.mark.skipif(bool(native.missing), reason=native.missing or "")

NAMES = "rms_norm", "layer_norm"
DTYPES = torch.float32, torch.float64, torch.bfloat16, torch.float16
OPINFO = {
    op.name.rpartition(".")[2]: op for op in op_db if op.name in ("nn.functional.rms_norm", "nn.functional.layer_norm")
}


def replaced(name: str) -> list[str]:
    keys = "CPU", "AutogradCPU"
    return [k for k in keys if torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", k)]


@pytest.fixture(autouse=True)
def _nothing_stays():
    yield
    assert not replaced("rms_norm")
    assert not replaced("layer_norm")


def call(name, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns once of mixed dtypes
        return getattr(F, name)(*args, **kwargs)


def outcome(name, *args, **kwargs):
    """The result, or the error's type and text."""
    try:
        return call(name, *args, **kwargs)
    except Exception as error:
        return type(error), str(error)


def amplified(name, x, *shape):
    """By how much layer_norm's first roundings, of the size of x, are magnified where a row deviates little."""
    if name == "rms_norm" or not x.numel() or not isinstance(x, torch.Tensor):
        return 1.0
    rows = x.detach().double().reshape(-1, math.prod(*shape))
    return 1 + (rows.abs().amax(1) / rows.std(1, correction=0).add(1e-6)).max().item()


def strides(t):
    """Those that matter: where there is no neighbour they are arbitrary."""
    return [s for s, n in zip(t.stride(), t.shape, strict=True) if n > 1]


def same(a, b, factor=1.0):
    if isinstance(a, tuple) or isinstance(b, tuple):
        assert a == b
        return
    assert (a.dtype, a.shape, a.device) == (b.dtype, b.shape, b.device)
    if a.numel():
        assert strides(a) == strides(b)
    assert a.requires_grad == b.requires_grad
    assert a.is_inference() == b.is_inference()
    eps = {torch.float64: 2.3e-16, torch.float32: 1.2e-7, torch.float16: 9.8e-4, torch.bfloat16: 7.9e-3}
    tolerance = 8 * eps[a.dtype] * factor
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


# ---- torch's own samples ----


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_torchs_samples(name, dtype):
    for sample in OPINFO[name].sample_inputs("cpu", dtype, requires_grad=True):
        tensors = [t for t in (sample.input, *sample.args, *sample.kwargs.values()) if isinstance(t, torch.Tensor)]
        theirs = call(name, sample.input, *sample.args, **sample.kwargs)
        with accelerate(layer_norm=True):
            ours = call(name, sample.input, *sample.args, **sample.kwargs)
        factor = amplified(name, sample.input, sample.args[0])
        same(ours, theirs, factor)
        dy = torch.randn_like(theirs)
        for g, h in zip(torch.autograd.grad(ours, tensors, dy), torch.autograd.grad(theirs, tensors, dy), strict=True):
            assert g.dtype == h.dtype
            rtol = 32 * torch.finfo(dtype).eps * factor  # a gain's gradient is a sum over rows
            torch.testing.assert_close(g, h, rtol=rtol, atol=rtol * (1 + h.abs().max().item() if h.numel() else 1))


@pytest.mark.parametrize("name", NAMES)
def test_torchs_error_samples(name):
    errors = list(OPINFO[name].error_inputs("cpu")) if OPINFO[name].error_inputs_func else []
    with accelerate(layer_norm=True):
        for error in errors:
            with pytest.raises(error.error_type, match=error.error_regex):
                call(name, error.sample_input.input, *error.sample_input.args, **error.sample_input.kwargs)


# ---- arguments, dtypes, layouts, errors: each as torch has it ----

X = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1))
W = torch.randn(6, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("w", [*DTYPES, torch.complex64, torch.int64, None], ids=str)
@pytest.mark.parametrize("x", [*DTYPES, torch.complex64, torch.int64], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_pair_of_dtypes(name, x, w):
    args = X.to(x), (6,), None if w is None else W.to(w)
    theirs = outcome(name, *args)
    with accelerate(layer_norm=True):
        ours = outcome(name, *args)
    if isinstance(ours, torch.Tensor) and ours.dtype.is_complex:
        assert torch.equal(ours, theirs)
    else:
        same(ours, theirs)


def layouts():
    x = torch.randn(2, 3, 4, 5)
    yield from (x, x.transpose(1, 2), x.permute(3, 2, 1, 0), x.to(memory_format=torch.channels_last), x[..., ::2])
    yield from (x[:, :, 1], x[0, 0, 0], x[:, :0], x.mT, x[:, :1].expand(2, 7, 4, 5), torch.randn(2, 3, 2, 4, 5))
    yield torch.randn(2, 3, 2, 4, 5).to(memory_format=torch.channels_last_3d)
    yield torch.randn(2, 8, 3, 16).to(memory_format=torch.channels_last)[:, ::2]
    yield torch.randn(2, 1, 3, 16).transpose(1, 2)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("index", range(14))
@pytest.mark.parametrize("name", NAMES)
def test_every_layout(name, index, grad):
    x = list(layouts())[index].requires_grad_(grad)
    args = x, x.shape[-1:], torch.rand(x.shape[-1])
    theirs = call(name, *args)
    with accelerate(layer_norm=True):
        ours = call(name, *args)
    factor = amplified(name, x, x.shape[-1:])
    same(ours, theirs, factor)
    if grad and ours.numel():
        dy = torch.randn_like(ours)
        g, h = (torch.autograd.grad(y, x, dy)[0] for y in (ours, theirs))
        assert strides(g) == strides(h)
        torch.testing.assert_close(g, h, rtol=1e-5, atol=1e-5 * factor**2)


@pytest.mark.parametrize(
    "args",
    [
        (X, (6,), None, -1e-3),
        (X, (6,), None, math.nan),
        (X, (6,), None, math.inf),
        (X, (6,), None, 0.0),
        (X, (), None),
        (X, (5,), None),
        (X, (4, 6), None),
        (X, (4, 6), torch.randn(4, 6)),
        (X, (6,), torch.randn(4, 6)),  # ours: a gain for each head
        (X, (6,), torch.randn(5)),
        (X, (6,), torch.randn(1)),
        (X, (6,), W.to("meta")),
        (X[0, 0, 0], (1,), None),
        (X.to_sparse(), (6,), None),
        (X, (6,), "w"),
    ],
    ids=lambda args: f"{tuple(args[0].shape)}-{args[1]}-{[getattr(a, 'shape', a) for a in args[2:]]}",
)
def test_what_torch_takes_or_refuses(args):
    theirs = outcome("rms_norm", *args)
    layer = outcome("layer_norm", *args[:3])
    with accelerate(layer_norm=True):
        same(outcome("rms_norm", *args), theirs)
        same(outcome("layer_norm", *args[:3]), layer)


def test_it_is_our_kernels():
    x = torch.randn(5, 64)
    x[1] *= 1e-30  # torch's squares are 0
    with accelerate():
        assert torch.equal(F.rms_norm(x, (64,), eps=0.0), rms_norm(x, (64,), eps=0.0))
        assert torch.equal(torch.nn.RMSNorm(64)(x), rms_norm(x, (64,), torch.ones(64)))
        q = torch.randn(2, 3, 4, 64).transpose(1, 2)
        assert torch.equal(torch.rms_norm(q, (64,)), rms_norm(q, (64,)))
    assert not torch.equal(F.rms_norm(x, (64,), eps=0.0), rms_norm(x, (64,), eps=0.0))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_modes_of_autograd(mode):
    with torch.inference_mode():
        made, gain = torch.randn(3, 6), torch.rand(6)
    x, w = torch.randn(3, 6, requires_grad=True), torch.rand(6, requires_grad=True)
    for name in NAMES:
        for args in ((x, (6,), w), (made, (6,), w), (x, (6,), gain), (made, (6,), gain)):
            with mode():
                theirs = outcome(name, *args)
                with accelerate(layer_norm=True):
                    same(outcome(name, *args), theirs)


# ---- derivatives, transforms, capture ----


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_of_second_order_and_forward_mode(name):
    x = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    w = torch.randn(7, dtype=torch.float64, requires_grad=True)
    with accelerate(layer_norm=True):
        function = lambda x, w: getattr(F, name)(x, (7,), w)  # noqa: E731
        assert torch.autograd.gradcheck(function, (x, w), check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(function, (x, w))


@pytest.mark.parametrize("name", NAMES)
def test_transforms(name):
    x, w = torch.randn(5, 3, 8), torch.randn(8)
    function = lambda x: getattr(F, name)(x, (8,), w)  # noqa: E731
    square = lambda x: function(x).square().sum() * function(x)[0].sum()  # noqa: E731

    def everything():
        yield torch.func.vmap(function)(x)
        yield torch.func.grad(square)(x[0])
        yield torch.func.vmap(torch.func.grad(square))(x)
        yield torch.func.jacrev(function)(x[0, :2])
        yield torch.func.hessian(square)(x[0, :2])
        yield torch.func.functionalize(function)(x)
        yield torch.func.jvp(function, (x,), (x + 1,))[1]

    theirs = list(everything())
    with accelerate(layer_norm=True):
        ours = list(everything())
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_captured_graphs_are_torchs():
    x, module = torch.randn(3, 8), torch.nn.Sequential(torch.nn.RMSNorm(8), torch.nn.LayerNorm(8))
    theirs = module(x)
    with accelerate(layer_norm=True):
        program = torch.export.export(module, (x,))
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        loss = compiled(x).square().sum()
        gradient = torch.autograd.grad(loss, module[0].weight)[0]
    names = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    assert names == {"aten.rms_norm.default", "aten.layer_norm.default"}
    torch.testing.assert_close(program.module()(x), theirs)
    torch.testing.assert_close(compiled(x), theirs)
    torch.testing.assert_close(gradient, torch.autograd.grad(module(x).square().sum(), module[0].weight)[0])


def test_dispatch_modes_see_torchs_operations():
    class Names(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    x, both = torch.randn(3, 8), []
    for switch in (False, True):
        seen: list[str] = []
        on = accelerate() if switch else None
        with Names():
            F.rms_norm(x, (8,))
        if on:
            on.undo()
        both.append(seen)
    assert both[0] == both[1]
    assert len(both[0]) > 1


@pytest.mark.parametrize("name", NAMES)
def test_autocast(name):
    linear = torch.nn.Linear(8, 8)
    w = torch.rand(8)
    for x in (torch.randn(3, 8), torch.randn(3, 8, dtype=torch.bfloat16)):
        with torch.autocast("cpu", torch.bfloat16):
            theirs = call(name, linear(x), (8,), w), call(name, x, (8,), w)
            with accelerate(layer_norm=True):
                ours = call(name, linear(x), (8,), w), call(name, x, (8,), w)
        for a, b in zip(ours, theirs, strict=True):
            same(a, b)


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided], ids=str)
def test_nested_tensors(layout):
    parts, w = [torch.randn(2, 8), torch.randn(3, 8)], torch.rand(8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nested = torch.nested.nested_tensor(parts, layout=layout)
    with accelerate(layer_norm=True):
        ours = F.layer_norm(nested, (8,), w, w)
    for a, b in zip(ours.unbind(), F.layer_norm(nested, (8,), w, w).unbind(), strict=True):
        assert torch.equal(a, b)


# ---- the switch ----


def test_undo_leaves_nothing_and_is_repeatable():
    with accelerate() as outer:
        assert replaced("rms_norm") == ["CPU", "AutogradCPU"]
        assert not replaced("layer_norm")
        inner = accelerate(layer_norm=True)
        assert replaced("layer_norm")
        outer.undo()  # not the last one
        outer.undo()
        assert replaced("rms_norm")
        inner.undo()
        assert not replaced("rms_norm")
        assert repr(inner) == "<accelerate: undone>"
    again = accelerate()
    assert replaced("rms_norm")
    again.undo()


def test_an_error_within_undoes():
    with pytest.raises(KeyError), accelerate():
        raise KeyError
    assert not replaced("rms_norm")


def test_another_librarys_implementation_is_left():
    library = torch.library.Library("aten", "IMPL")
    library.impl("layer_norm", lambda input, *args: input, "CPU")
    try:
        with pytest.raises(RuntimeError, match=r"aten::layer_norm must be torch's own .* for CPU"):
            accelerate(layer_norm=True)
        assert not replaced("rms_norm")
        with accelerate():
            pass
    finally:
        library._destroy()


def test_an_operator_that_has_changed_is_refused(monkeypatch):
    monkeypatch.setitem(accelerate.__globals__["SCHEMAS"], "rms_norm", "aten::rms_norm(Tensor input) -> Tensor")
    with pytest.raises(NotImplementedError, match=r"accelerate.* knows aten::rms_norm as torch 2.4 to 2.13 have it"):
        accelerate()


def test_its_argument_is_a_bool():
    with pytest.raises(TypeError, match="layer_norm must be a bool, got int"):
        accelerate(layer_norm=1)
