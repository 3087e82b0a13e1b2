"""What test_triton_kernels.py runs in processes of its own, where the kernels are interpreted."""

import contextlib
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

import test_gated as gated
import test_quantized as quantized
import triton_interpreter
from conformance import CASES, EAGER, Case
from conforms import conforms
from rmsnorm import reference
from rmsnorm.torch import add_rms_norm, layer_norm, rms_norm, rms_norm_gated, rms_norm_quantized
from rmsnorm.torch.triton import choices, functions, launch, plans
from tolerances import around, check, expected, smallest, ulp

triton_interpreter.install()
SMALL = [case for case in CASES if case.rows * case.n <= 4000 and case.rows > 0]


@contextlib.contextmanager
def short_registers():
    """Rows of more than 64 elements are looped, in pieces of 32, and sums leave the registers every second tile."""
    names = ("forward", "backward", "backward_rows", "backward_columns", "gated_backward", "LEAF")
    saved = tuple(getattr(choices, name) for name in names)
    looped = choices.Choice(block=32, rows=1, warps=1, looped=True, programs=6)
    choices.forward = lambda n, *a: looped if n > 64 else saved[0](n, *a)
    choices.backward = lambda n, *a: None if n > 64 else replace(saved[1](n, *a), hold=n % 2 == 0, rows=4)
    choices.backward_rows = choices.backward_columns = lambda *a: looped
    choices.quantized.cache_clear()
    choices.gated_backward = lambda n, *a: replace(saved[4](n, *a), hold=n % 2 == 0, rows=4)
    choices.LEAF = 2
    plans.plans.clear()
    try:
        yield
    finally:
        for name, value in zip(names, saved, strict=True):
            setattr(choices, name, value)
        choices.quantized.cache_clear()
        plans.plans.clear()


def conformance(shard, shards):
    """The conformance suite's small cases, every operation, dtype, layout and casting among them."""
    before = dict(triton_interpreter.served)
    for case in SMALL[shard::shards]:
        conforms(EAGER, case)
    for name in ("rms_norm", "layer_norm", "add_rms_norm", "rms_norm_backward", "layer_norm_backward"):
        assert triton_interpreter.served.get(name, 0) > before.get(name, 0), f"{name} never ran in Triton"


def long_rows():
    """The kernels that sweep a row, and partial sums over several leaves."""
    cases = [case for case in SMALL if case.n in (33, 65, 127, 129, 1000)][::14]
    with short_registers():
        for case in cases:
            conforms(EAGER, case)
        for case in (
            Case(n=100, rows=40, p=0.3),
            Case("add_rms_norm", n=100, rows=9, p=0.5, residual=torch.float32),
            Case(n=100, rows=12, heads=3, p=0.1, weight=torch.float32),
            Case("layer_norm", n=100, rows=9, bias=torch.float32),
            Case(n=7, rows=90),
        ):
            conforms(EAGER, case)
    return len(cases)


def gated_norm():
    """Cases of test_torch_gated: y, dx, dgate, dweight; sums over several leaves, tiles read twice."""
    cases = [case for case in gated.CASES if 0 < case.rows * case.n <= 3000]
    for case in cases[::2]:
        gated.test_kernels(case)
    with short_registers():
        for norm_first in (False, True):
            for group, hold in ((24, True), (33, False)):
                layout = "sliced" if hold else "contiguous"
                case = gated.Case(
                    torch.float32, 40, group, 3, 0.5, torch.bfloat16, 1e-5, norm_first, layout, "contiguous", 2.0
                )
                gated.test_kernels(case)
    z = torch.cat([torch.linspace(-120, 120, 10_000), -torch.logspace(-45, 2, 2000)]).view(12, 1000)
    y = rms_norm_gated(torch.ones_like(z), z, (1000,), None, 0.0, norm_before_gate=True)
    exact = z.double().numpy() / (1 + np.exp(-z.double().numpy()))
    slack = 6 * ulp(exact, torch.float32) + 128 * smallest(torch.float32)
    check(y, around(exact, slack, torch.float32), "silu")
    special = torch.tensor([torch.inf, -torch.inf, torch.nan, -0.0, 0.0])
    found = rms_norm_gated(torch.ones(5), special, (5,), None, 0.0, norm_before_gate=True)
    torch.testing.assert_close(found, torch.nn.functional.silu(special), equal_nan=True, rtol=0, atol=0)
    for name in ("rms_norm_gated", "rms_norm_gated_backward"):
        assert triton_interpreter.served.get(name, 0) >= len(cases) // 2, f"{name} ran rarely in Triton"


def quantized_norm():
    """Cases of test_torch_quantized: both codes, every code and every tie, rows without a scale; long rows too."""
    cases = [case for case in quantized.CASES if 0 < case["rows"] * case["n"] <= 3000]
    for case in cases[::2]:
        quantized.test_against_the_oracle(rms_norm_quantized, case)
    for code in (torch.int8, quantized.FP8):
        quantized.test_every_code_and_every_tie(rms_norm_quantized, code)
        quantized.test_rows_without_a_scale(rms_norm_quantized, code)
        with short_registers():
            quantized.test_every_code_and_every_tie(rms_norm_quantized, code)
            for case in [case for case in cases if case["n"] > 64 and case["code"] == code][:3]:
                quantized.test_against_the_oracle(rms_norm_quantized, case)
    quantized.test_subnormal_scales_do_not_leave_the_codes()
    quantized.test_heads_and_several_dimensions()
    assert triton_interpreter.served["rms_norm_quantized"] > len(cases) // 2, "ran rarely in Triton"


def rare_rows():
    """Rows whose squares leave float32's range, each beside usual ones, in both kinds of kernel."""
    for n, operation in ((24, "rms_norm"), (100, "rms_norm"), (24, "layer_norm"), (100, "layer_norm")):
        with short_registers():
            for exponent in (-148, -130, -80, -50, 0, 50, 62, 100, 126):
                x = torch.randn(3, n) * torch.tensor([1.0, 2.0**exponent, 1.0])[:, None]
                eps = 1e-6 if exponent > 0 else 0.0
                w = torch.randn(n)
                y = layer_norm(x, (n,), w, None, eps) if operation == "layer_norm" else rms_norm(x, (n,), w, eps, p=0.5)
                assert torch.isfinite(y).all()
                case = Case(operation, n=n, rows=3, p=0.5 if operation == "rms_norm" else 1.0, eps=eps)
                inputs = SimpleNamespace(x=x, dy=torch.zeros_like(x), weight=w, bias=None)
                check(y, expected(case, inputs)["y"], f"{operation} of rows at 2^{exponent}")


def rare_gradients():
    """Gradients of such rows, under gradients so small or so large that products of the two leave the range."""
    for n, operation in ((24, "rms_norm"), (100, "rms_norm"), (24, "layer_norm"), (100, "layer_norm")):
        with short_registers():
            for exponent, gradient in (
                (-140, -60),
                (-100, -110),
                (-40, -110),
                (-60, 60),
                (60, -100),
                (60, 60),
                (120, 0),
            ):
                eps = 0.0 if operation == "rms_norm" else 1e-30
                x = torch.randn(3, n) * torch.tensor([1.0, 2.0**exponent, 1.0])[:, None]
                dy = torch.randn(3, n) * torch.tensor([1.0, 2.0**gradient, 1.0])[:, None]
                leaf, w = x.clone().requires_grad_(), torch.randn(n)
                p = 0.5 if operation == "rms_norm" and exponent < 100 else 1.0
                y = (
                    rms_norm(leaf, (n,), w, eps, p=p)
                    if operation == "rms_norm"
                    else layer_norm(leaf, (n,), w, None, eps)
                )
                (dx,) = torch.autograd.grad(y, leaf, dy)
                case = Case(operation, n=n, rows=3, p=p, eps=eps, weight=torch.float32)
                inputs = SimpleNamespace(x=x, dy=dy, weight=w, bias=None)
                check(dx, expected(case, inputs)["dx"], f"dx of {operation} at 2^{exponent}, dy at 2^{gradient}")


def elements_beyond_the_first_k():
    """They overflow only where their results do."""
    for small, large in ((-120, 4), (-20, 100), (30, 105), (-140, -20)):
        x = torch.randn(2, 40)
        x[:, :4] *= 2.0**small
        x[:, 4:] *= 2.0**large
        for n in (40, 80):
            rows = torch.cat([x] * (n // 40), 1)
            with short_registers():
                y = rms_norm(rows, (n,), None, 0.0, p=4 / n)
            inputs = SimpleNamespace(x=rows, dy=torch.zeros_like(rows), weight=None, bias=None)
            case = Case(n=n, rows=2, p=4 / n, eps=0.0, weight=None)
            check(y, expected(case, inputs)["y"], f"first elements at 2^{small}, others at 2^{large}")


def not_finite():
    """NaN stays in its row, infinity gives what torch gives, zeros at eps = 0 are 0/0."""
    for n in (8, 100):
        with short_registers():
            x = torch.randn(4, n)
            x[0, 3], x[1, 2], x[2] = float("nan"), float("inf"), 0
            found = rms_norm(x, (n,), eps=0.0)
            wanted = torch.nn.functional.rms_norm(x, (n,), eps=0.0)
            torch.testing.assert_close(found, wanted, equal_nan=True, rtol=1e-6, atol=1e-6)


def a_row_alone():
    """Bits do not depend on the batch, the place in it, or on how its rows are strided."""
    for dtype, n in ((torch.float32, 48), (torch.bfloat16, 257), (torch.float32, 1000)):
        x = torch.randn(70, n).to(dtype)
        w = torch.randn(n)
        whole = rms_norm(x, (n,), w)
        for row in (0, 1, 37, 69):
            assert torch.equal(rms_norm(x[row : row + 1].clone(), (n,), w)[0], whole[row])
        padded = torch.zeros(70, 2, n, dtype=dtype)
        padded[:, 1] = x
        assert torch.equal(rms_norm(padded[:, 1], (n,), w), whole)


def heads():
    """A gain for each head, forward and backward, whose sums go to the head's own."""
    x = torch.randn(5, 7, 3, 24, requires_grad=True)
    w = torch.randn(3, 24, requires_grad=True)
    b = torch.randn(3, 24, requires_grad=True)
    dy = torch.randn(5, 3, 7, 24).transpose(1, 2)
    with short_registers():
        y = rms_norm(x, (24,), w, 1e-5, bias=b, p=0.5)
        found = torch.autograd.grad(y, (x, w, b), dy)
    flat = [t.detach().double().numpy() for t in (dy, x)]
    for head in range(3):
        da, dg, db = reference.rms_norm_vjp(
            flat[0][:, :, head], flat[1][:, :, head], w[head].detach().numpy(), k=12, eps=1e-5
        )
        np.testing.assert_allclose(found[0][:, :, head], da, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[1][head], dg, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[2][head], db, rtol=1e-4, atol=1e-5)


def awkward_memory():
    """Zero rows, in place, outputs that interleave, too many levels of strides, transforms."""
    w = torch.randn(8, requires_grad=True)
    nothing = torch.empty(0, 8, requires_grad=True)
    dx, dw = torch.autograd.grad(rms_norm(nothing, (8,), w).sum(), (nothing, w))
    assert dx.shape == (0, 8)
    assert torch.equal(dw, torch.zeros(8))
    x, w = torch.randn(6, 8), w.detach()
    wanted = rms_norm(x, (8,), w)
    inplace = x.clone()
    assert torch.equal(rms_norm(inplace, (8,), w, out=inplace), wanted)
    assert torch.equal(inplace, wanted)
    packed = torch.randn(6, 2, 8)
    expected = rms_norm(packed[:, 0].clone(), (8,), w)
    assert torch.equal(rms_norm(packed[:, 0], (8,), w, out=packed[:, 1]), expected)
    shifted = torch.randn(7, 8)
    expected = rms_norm(shifted[:6].clone(), (8,), w)
    with pytest.raises(ValueError, match="share memory"):  # an output over rows that are still to be read
        rms_norm(shifted[:6], (8,), w, out=shifted[1:])
    a, residual = torch.randn(6, 8), torch.randn(6, 8)
    normed, new = add_rms_norm(a.clone(), residual, (8,), w)
    ours, stream = a.clone(), residual.clone()
    add_rms_norm(ours, stream, (8,), w, inplace=True)
    assert torch.equal(ours, normed)
    assert torch.equal(stream, new)
    spread = torch.randn(2, 2, 2, 2, 2, 2, 2, 2, 8)[:, 0, :, 0, :, 0, :, 0]
    torch.testing.assert_close(rms_norm(spread, (8,), w), rms_norm(spread.clone(), (8,), w))
    many = torch.randn(3, 6, 8)
    torch.testing.assert_close(torch.vmap(lambda t: rms_norm(t, (8,), w))(many), rms_norm(many, (8,), w))


def addresses_are_what_the_compiler_is_told():
    """Multiples of BYTES, those of scratch memory too; and no second axis of a grid beyond what a device takes."""
    real = launch.launcher

    def launcher(kernel, pointers, wide, constants, choice, device):
        run, least = real(kernel, pointers, wide, constants, choice, device), dict(constants).get("BYTES", 1)

        def checked(x, y, tensors, addresses, integers):
            assert all(address % least == 0 for address in addresses), f"{kernel.__name__}: {addresses}"
            assert y <= choices.MOST_Y
            run(x, y, tensors, addresses, integers)

        return checked

    with short_registers(), mock.patch.object(launch, "launcher", launcher):
        for n, p in ((104, 1.0), (104, 0.2), (101, 0.2), (24, 1.0)):
            x, w = torch.randn(7, n, requires_grad=True), torch.randn(n, requires_grad=True)
            b = torch.randn(n, requires_grad=True)
            rms_norm(x, (n,), w, bias=b, p=p).sum().backward()
        many, gain = torch.ones(1, choices.MOST_Y + 1, 72), torch.ones(choices.MOST_Y + 1, 72)
        given = many, many, (72,), gain, torch.empty_like(many), None, None, None, None, 1.0, 0
        assert not functions.rms_norm_backward(*given)  # more heads than the second axis has programs


def no_compilation_for_another_number_of_rows():
    """A new batch size makes a plan, and nothing that would be compiled."""
    launch.launcher.cache_clear()
    w = torch.randn(16, requires_grad=True)
    for rows in (1, 2, 3, 16, 17, 100):
        x = torch.randn(rows, 16, requires_grad=True)
        rms_norm(x, (16,), w).sum().backward()
    assert launch.launcher.cache_info().misses == 3  # forward, backward, finish
    known = len(plans.plans)
    rms_norm(torch.randn(17, 16), (16,), w.detach())
    assert len(plans.plans) == known


def the_same_gradient_twice():
    """dweight has no order of its own: two calls agree bit for bit."""
    x, w, dy = torch.randn(300, 20, requires_grad=True), torch.randn(20, requires_grad=True), torch.randn(300, 20)
    one, other = (torch.autograd.grad(rms_norm(x, (20,), w), (x, w), dy) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
