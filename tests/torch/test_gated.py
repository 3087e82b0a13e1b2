"""rms_norm_gated against the oracle, its derivatives, its operator, its module."""

import re

import numpy as np
import pytest
import torch
from torch.autograd.gradcheck import gradcheck, gradgradcheck

import composites
from gated_cases import CASES, conforms, kernels_conform, make_inputs, silu_is_right, through
from rmsnorm import reference
from rmsnorm.torch import RMSNormGated, rms_norm_gated
from rmsnorm.torch.gated.composite import gated_backward
from rmsnorm.torch.gated.spec import check_gated_spec
from tolerances import rounded, wide


@pytest.mark.every_level
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels(case):
    kernels_conform(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_composite(case):
    inputs = make_inputs(case)
    conforms(case, through(composites.rms_norm_gated, case, inputs), inputs, composite=True)


@pytest.mark.parametrize("case", CASES[::3], ids=str)
def test_backward_composite(case):
    inputs = make_inputs(case)
    spec = check_gated_spec((case.n,), case.eps, case.norm_before_gate, case.groups, case.p)
    given = spec, inputs.dy, inputs.x, inputs.z, inputs.weight, (True, True, True)
    results = dict(zip(("dx", "dz", "dweight"), gated_backward(*given), strict=True))
    results["y"] = through(composites.rms_norm_gated, case, inputs)["y"]
    conforms(case, {k: t for k, t in results.items() if t is not None}, inputs, composite=True)


@pytest.mark.every_level
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_silu_over_the_whole_range(dtype):
    parts = torch.linspace(-120, 120, 100_001), torch.linspace(-1e-3, 1e-3, 1001), -torch.logspace(-45, 2, 5000)
    silu_is_right(torch.cat(parts).to(dtype))


@pytest.mark.parametrize("norm_before_gate", [False, True])
@pytest.mark.parametrize("exponent", [-80, 120])
def test_no_overflow_in_the_statistic(norm_before_gate, exponent):
    x, z = torch.randn(2, 5, 64)
    how = {"norm_before_gate": norm_before_gate, "groups": 2}
    found = rms_norm_gated(x * 2.0**exponent, z, (64,), None, 0.0, **how)
    torch.testing.assert_close(found, rms_norm_gated(x, z, (64,), None, 0.0, **how), rtol=2e-6, atol=1e-7)


OPTIONS = [
    {},
    {"norm_before_gate": True},
    {"groups": 2, "p": 0.5},
    {"groups": 2, "p": 0.5, "norm_before_gate": True},
]
EACH = pytest.mark.parametrize("options", OPTIONS, ids=str)
THOROUGH = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}


@EACH
def test_derivatives_of_every_order(options):
    def function(x, z, weight):
        return rms_norm_gated(x, z, (6,), weight, 1e-3, **options)

    given = [torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((3, 6), (3, 6), (6,))]
    assert gradcheck(function, given, **THOROUGH)
    assert gradgradcheck(function, given, check_fwd_over_rev=True)

    def first(x, z, weight):
        return torch.autograd.grad(function(x, z, weight).sin().sum(), (x, z, weight), create_graph=True)

    assert gradgradcheck(first, given)


@EACH
@pytest.mark.parametrize("trainable", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1)], ids=str)
@pytest.mark.parametrize("create_graph", [False, True])
def test_frozen_arguments(options, trainable, create_graph):
    given = [torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((4, 8), (4, 8), (8,))]
    full = torch.autograd.grad(rms_norm_gated(*given[:2], 8, given[2], 1e-5, **options).pow(3).sum(), given)
    some = [a.detach().requires_grad_(bool(t)) for a, t in zip(given, trainable, strict=True)]
    rms_norm_gated(*some[:2], 8, some[2], 1e-5, **options).pow(3).sum().backward(create_graph=create_graph)
    for argument, gradient, wanted in zip(some, full, trainable, strict=True):
        assert (argument.grad is not None) == bool(wanted)
        if wanted:
            torch.testing.assert_close(argument.grad.detach(), gradient, rtol=1e-9, atol=1e-11)


def test_vmap_and_per_sample_gradients():
    x, z, weight = torch.randn(5, 3, 8), torch.randn(5, 3, 8), torch.randn(8)

    def loss(weight, x, z):
        return rms_norm_gated(x, z, (8,), weight, 1e-5, groups=2).tanh().sum()

    found = torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weight, x, z)
    each = [torch.func.grad(loss)(weight, a, b) for a, b in zip(x, z, strict=True)]
    torch.testing.assert_close(found, torch.stack(each), rtol=1e-5, atol=1e-6)


@EACH
def test_compiled_is_eager(options):
    torch._dynamo.reset()
    compiled = torch.compile(rms_norm_gated, fullgraph=True, dynamic=True)
    given = [torch.randn(*s, requires_grad=True) for s in ((4, 8), (4, 8), (8,))]
    results = []
    for function in (compiled, rms_norm_gated):
        y = function(*given[:2], (8,), given[2], 1e-5, **options)
        results.append((y, *torch.autograd.grad(y.sin().sum(), given)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    assert torch.equal(results[0][0], results[1][0])


def test_several_normalised_dimensions_and_a_gate_of_another_dtype():
    x, z, weight = torch.randn(3, 4, 6).bfloat16(), torch.randn(3, 4, 6), torch.randn(4, 6)
    flat = rms_norm_gated(x.view(3, 24), z.view(3, 24).bfloat16(), 24, weight.flatten(), 1e-5, groups=4)
    found = rms_norm_gated(x, z.bfloat16(), (4, 6), weight, 1e-5, groups=4)
    assert torch.equal(found.view(3, 24), flat)
    given = [t.requires_grad_() for t in (x, z, weight)]
    found = rms_norm_gated(x, z, (4, 6), weight, 1e-5)
    gradients = torch.autograd.grad(found, given, torch.ones_like(found))
    wide_ones = [t.detach().float().requires_grad_() for t in given]
    expected = torch.autograd.grad(rms_norm_gated(*wide_ones[:2], (4, 6), wide_ones[2], 1e-5).sum(), wide_ones)
    for gradient, exact, t in zip(gradients, expected, given, strict=True):
        assert gradient.dtype == t.dtype
        torch.testing.assert_close(gradient.float(), exact, rtol=2**-7, atol=1e-4)
    exact = reference.rms_norm_gated(wide(x).reshape(3, 24), wide(z).reshape(3, 24), wide(weight).reshape(24), eps=1e-5)
    np.testing.assert_allclose(wide(found).reshape(3, 24), rounded(exact, torch.bfloat16), rtol=2**-7)


def test_meta_and_empty():
    for shape in ((0, 8), (3, 0, 8)):
        x, z, weight = (torch.randn(s, requires_grad=True) for s in (shape, shape, (8,)))
        gradients = torch.autograd.grad(rms_norm_gated(x, z, 8, weight, groups=2).sum(), (x, z, weight))
        assert [g.shape for g in gradients] == [x.shape, z.shape, weight.shape]
        assert not gradients[2].any()
    x = torch.empty(3, 8, device="meta")
    assert rms_norm_gated(x, x, 8).shape == (3, 8)


@pytest.mark.every_level
def test_threads_change_no_bit(set_threads):
    given = [torch.randn(*s, requires_grad=True) for s in ((700, 256), (700, 256), (256,))]

    def work():
        y = rms_norm_gated(*given[:2], 256, given[2], 1e-5, groups=2)
        return (y.detach(), *torch.autograd.grad(y, given, torch.ones_like(y)))

    set_threads(1)
    alone = work()
    set_threads(2)
    for one, other in zip(alone, work(), strict=True):
        assert torch.equal(one, other)


def test_module():
    norm = RMSNormGated(8, 1e-5, dtype=torch.bfloat16, groups=2, norm_before_gate=True, p=0.5)
    assert list(norm.state_dict()) == ["weight"]
    assert norm.weight.dtype == torch.bfloat16
    assert (norm.weight == 1).all()
    x, z = torch.randn(2, 3, 8)
    expected = rms_norm_gated(x, z, (8,), norm.weight, 1e-5, groups=2, norm_before_gate=True, p=0.5)
    assert torch.equal(norm(x, z), expected)
    assert str(norm) == "RMSNormGated((8,), eps=1e-05, norm_before_gate=True, groups=2, p=0.5)"
    with pytest.raises(ValueError, match="groups must divide the 8 normalised elements, got 3"):
        RMSNormGated(8, groups=3)


X = torch.ones(2, 3, 8)
WRONG = [
    ({"gate": torch.ones(3, 8)}, ValueError, "gate must have the shape of input, (2, 3, 8), got (3, 8)"),
    ({"gate": torch.ones(2, 3, 8, dtype=torch.int64)}, TypeError, "gate must be of a floating dtype"),
    ({"gate": None}, TypeError, "gate must be a torch.Tensor, got NoneType"),
    ({"weight": torch.ones(3, 8)}, ValueError, "weight must have the shape normalized_shape = (8,), got (3, 8)"),
    ({"groups": 3}, ValueError, "groups must divide the 8 normalised elements, got 3"),
    ({"groups": 0}, ValueError, "groups must divide the 8 normalised elements, got 0"),
    ({"groups": 2.0}, TypeError, "groups must be an int, got 2.0"),
    ({"norm_before_gate": "yes"}, TypeError, "norm_before_gate must be True"),
    ({"p": 2}, ValueError, "p is the fraction"),
    ({"eps": -1}, ValueError, "eps is inside the root"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG, ids=[str(w[0])[:30] for w in WRONG])
def test_wrong_arguments(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        rms_norm_gated(X, **{"gate": X, "normalized_shape": 8} | options)
