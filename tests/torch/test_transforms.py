"""Every transform of torch × eager, compiled, exported × every function and operator, against torch's own operations.

One graph holds all transforms of a function, and one exported program serves all: compilation is what takes time here.
"""

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad, jvp, vmap

from rmsnorm.torch import add_rms_norm, add_rms_norm_quantized, layer_norm, rms_norm, rms_norm_gated, rms_norm_quantized
from transforms import (
    EAGER,
    TRACED,
    TRANSFORMS,
    UNTRACED,
    Holds,
    check_compiled,
    dual,
    leaves,
    same,
    scalar,
    wanted,
)

N, EPS = 6, 1e-3
OPS = torch.ops.rmsnorm


def partial(x, weight):
    """pRMSNorm of the first half, with a zero-centred gain."""
    return x * (x[..., : N // 2].square().mean(-1, keepdim=True) + EPS).rsqrt() * (1 + weight)


def centred(x, weight, bias):
    """Layer normalisation; the mixed derivatives of second order of F.layer_norm are wrong (torch 2.13)."""
    x = x - x.mean(-1, keepdim=True)
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight + bias


def added(pair):
    normed, stream = pair
    return normed + stream.cos()


FUNCTIONS = {  # of (x, other, weight): ours, the operator, torch's
    "rms_norm": (
        lambda x, other, weight: rms_norm(x, N, weight, EPS) * other,
        lambda x, other, weight: OPS.rms_norm(x, [N], weight, None, EPS, 1.0, False, "once") * other,
        lambda x, other, weight: F.rms_norm(x, (N,), weight, EPS) * other,
    ),
    "p, zero_centered, bias": (
        lambda x, other, weight: rms_norm(x, N, weight, EPS, bias=weight, p=0.5, zero_centered=True) * other,
        lambda x, other, weight: OPS.rms_norm(x, [N], weight, weight, EPS, 0.5, True, "once") * other,
        lambda x, other, weight: (partial(x, weight) + weight) * other,
    ),
    "layer_norm": (
        lambda x, other, weight: layer_norm(x, N, weight, weight, EPS) * other,
        lambda x, other, weight: OPS.layer_norm(x, [N], weight, weight, EPS) * other,
        lambda x, other, weight: centred(x, weight, weight) * other,
    ),
    "add_rms_norm": (
        lambda x, other, weight: added(add_rms_norm(x, other, N, weight, EPS)),
        lambda x, other, weight: added(OPS.add_rms_norm(x, other, [N], weight, None, EPS, 1.0, False, "once")),
        lambda x, other, weight: added((F.rms_norm(x + other, (N,), weight, EPS), x + other)),
    ),
    "rms_norm_gated": (
        lambda x, other, weight: rms_norm_gated(x, other, N, weight, EPS),
        lambda x, other, weight: OPS.rms_norm_gated(x, other, [N], weight, EPS, False, 1, 1.0),
        lambda x, other, weight: F.rms_norm(x * other * other.sigmoid(), (N,), weight, EPS),
    ),
    "rms_norm_gated, norm_before_gate": (
        lambda x, other, weight: rms_norm_gated(x, other, N, weight, EPS, norm_before_gate=True),
        lambda x, other, weight: OPS.rms_norm_gated(x, other, [N], weight, EPS, True, 1, 1.0),
        lambda x, other, weight: F.rms_norm(x, (N,), weight, EPS) * other * other.sigmoid(),
    ),
}
EACH = pytest.mark.parametrize("name", FUNCTIONS)


def arguments():
    generator = torch.Generator().manual_seed(1)
    shapes = ((3, N), (3, N), (N,))
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("operator", [False, True], ids=["function", "operator"])
@EACH
def test_eager(name, operator, transform):
    apply, (ours, op, theirs) = TRANSFORMS[transform], FUNCTIONS[name]
    same(apply(op if operator else ours)(*arguments()), wanted(transform, theirs)(*arguments()), transform)


SECOND_ORDER = ("hessian", "jacrev of jacrev")  # half of the time of compilation: of two functions


@EACH
def test_compiled(name):
    """All transforms in one graph of the public function, which holds its expression: no later pass sees more of it."""
    every = name in ("rms_norm", "rms_norm_gated")
    transforms = [k for k in TRACED if k not in UNTRACED and (every or k not in SECOND_ORDER)]
    check_compiled(
        FUNCTIONS[name][0], FUNCTIONS[name][2], transforms, "aot_eager" if name == "rms_norm" else "eager", arguments()
    )


@EACH
def test_compiled_operators(name):
    """Operators stay in Dynamo's graph: what decides is what AOTAutograd sees when it runs the graph."""
    check_compiled(
        FUNCTIONS[name][1], FUNCTIONS[name][2], ("grad", "jvp", "vmap, also of gains"), "aot_eager", arguments()
    )


@pytest.mark.parametrize("transform", EAGER)
def test_compiled_with_breaks(transform):
    """Dynamo leaves these to Python, and a compiled function with one of them is as right as an eager one."""
    if transform == "dual gradient":
        pytest.skip("torch loses the tangent in a compiled function, of F.rms_norm too (2.13)")
    torch._dynamo.reset()
    ours, _, theirs = FUNCTIONS["rms_norm"]
    found = torch.compile(EAGER[transform](ours), backend="eager")(*arguments())
    same(found, wanted(transform, theirs)(*arguments()), transform)


@pytest.mark.parametrize("transform", ["grad", "jvp", "vmap", "hessian", "vmap of grad"])
def test_transforms_of_a_compiled_function(transform):
    torch._dynamo.reset()
    ours, _, theirs = FUNCTIONS["layer_norm"]
    found = TRACED[transform](torch.compile(ours, backend="eager"))(*arguments())
    same(found, TRACED[transform](theirs)(*arguments()), transform)


@EACH
def test_compiled_autograd(name):
    """The backward pass is captured while it runs."""
    torch._dynamo.reset()
    for function in FUNCTIONS[name][:2]:
        given = leaves(arguments())
        expected = torch.autograd.grad(scalar(function)(*given), given)
        y = scalar(function)(*given)
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
            same(torch.autograd.grad(y, given), expected, name)


def test_compiled_by_inductor():
    check_compiled(FUNCTIONS["layer_norm"][0], FUNCTIONS["layer_norm"][2], ("jvp",), "inductor", arguments())


@EACH
def test_exported(name):
    """The program holds the operator, and is transformed afterwards."""
    ours, _, theirs = FUNCTIONS[name]
    program = torch.export.export(Holds(ours), tuple(arguments()))
    assert sum("rmsnorm" in str(node.target) for node in program.graph.nodes) == 1
    for transform, apply in TRANSFORMS.items():
        same(apply(program.module())(*arguments()), wanted(transform, theirs)(*arguments()), transform)


# ---- what has no derivative, and what cannot be right, raises ----


def quantized(x):
    return rms_norm_quantized(x, N)[1].double()


def quantized_sum(x):
    return add_rms_norm_quantized(x, 2 * x, N)[1].double()


def into_a_fresh_tensor(x):
    return rms_norm(x, N, out=torch.empty_like(x))


def in_place(x):
    return add_rms_norm(x.clone(), 2 * x, N, inplace=True)[0]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "function", [quantized, quantized_sum, into_a_fresh_tensor, in_place], ids=lambda f: f.__name__
)
def test_writing_and_rounding(function, compiled):
    """Reverse mode is refused; forward mode is right, or refused where rounding has no derivative."""
    torch._dynamo.reset()
    x, t, _ = arguments()
    run = torch.compile if compiled else lambda f, **_: f
    plain = {
        quantized: quantized,
        quantized_sum: quantized_sum,
        into_a_fresh_tensor: lambda x: rms_norm(x, N),
        in_place: lambda x: rms_norm(3 * x, N),
    }
    refused = (ValueError, NotImplementedError, torch._dynamo.exc.Unsupported)
    with pytest.raises(refused, match="not differentiable"):
        run(grad(lambda x: function(x).sum()), backend="eager", fullgraph=True)(x)
    same(run(vmap(function), backend="eager", fullgraph=True)(x), plain[function](x), "vmap")
    forward = run(lambda x, t: jvp(function, (x,), (t,))[1], backend="eager", fullgraph=True)
    if function in (quantized, quantized_sum):
        with pytest.raises(refused, match="has no derivative"):
            forward(x, t)
    else:
        same(forward(x, t), jvp(plain[function], (x,), (t,))[1], "jvp")


def test_a_captured_tensor_is_not_written():
    x, t, _ = arguments()
    out = torch.full_like(x, 7.0)
    for transform in (lambda f: jvp(f, (x,), (t,)), lambda f: grad(lambda x: f(x).sum())(x)):
        with pytest.raises((RuntimeError, ValueError), match=r"mutate a captured|not differentiable"):
            transform(lambda x: rms_norm(x, N, out=out))
    assert (out == 7).all()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_an_operator_with_dual_numbers_of_a_compiled_level(backend):
    """Only the graph knows of that level when it runs: the tangent would be lost."""
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="takes no dual numbers of a level"):
        torch.compile(dual(FUNCTIONS["rms_norm"][1]), backend=backend, fullgraph=True)(*arguments())


def test_wrong_arguments_are_noticed_in_every_way():
    """The expression checks what the kernels would have declined."""
    x, _, weight = arguments()
    for function in (
        lambda x: rms_norm(x, N, weight[:-1]),
        lambda x: rms_norm(x, N, casting="twice"),
        lambda x: OPS.rms_norm(x, [N], None, None, -1.0, 1.0, False, "once"),
        lambda x: OPS.layer_norm(x, [N - 1], None, None, EPS),
        lambda x: OPS.add_rms_norm(x, x[..., :-1], [N], None, None, EPS, 1.0, False, "once")[0],
        lambda x: OPS.rms_norm_gated(x, x, [N], weight, EPS, False, N - 1, 1.0),
    ):
        for transform in (vmap, lambda f: lambda x: jvp(f, (x,), (x,)), lambda f: grad(lambda x: f(x).sum())):
            with pytest.raises(ValueError, match=r"must|finite and not negative"):
                transform(function)(x)


@pytest.mark.parametrize("width", ["int", "shape"])
def test_a_symbolic_width(width):
    """One graph for every width, of functions and of their expressions (here: under vmap), also with p."""
    torch._dynamo.reset()

    def every(x):
        n = x.shape[-1] if width == "int" else x.shape[-1:]
        mapped = vmap(lambda x: rms_norm(x, n, p=0.5) + layer_norm(x, n) + rms_norm_gated(x, x, n, groups=3))(x)
        return mapped, rms_norm(x, n, p=0.3), *rms_norm_quantized(x, n, p=0.4)

    compiled = torch.compile(every, backend="eager", fullgraph=True, dynamic=True)
    for n in (12, 9, 30):
        with torch._dynamo.config.patch(error_on_recompile=n != 12):
            x = torch.randn(3, n, dtype=torch.float64)
            for one, other in zip(compiled(x), every(x), strict=True):
                torch.testing.assert_close(one.double(), other.double(), rtol=1e-6, atol=1e-10)


def test_out_in_one_graph():
    torch._dynamo.reset()
    x, _, weight = arguments()
    out = torch.empty_like(x)
    compiled = torch.compile(lambda x, out: rms_norm(x, N, weight, out=out), backend="aot_eager", fullgraph=True)
    same(compiled(x, out), rms_norm(x, N, weight), "result")
    same(out, rms_norm(x, N, weight), "out")
