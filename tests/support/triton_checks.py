"""Checks of the Triton kernels; tests/triton/test_kernels.py runs each in the process of triton_process.py."""

import contextlib
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

import gated_cases
import quantized_cases
from conformance import EAGER, Case
from conforms import conforms
from rmsnorm import reference
from rmsnorm.torch import add_rms_norm, functional, layer_norm, rms_norm, rms_norm_gated, rms_norm_quantized
from rmsnorm.torch.triton import choices, functions, launch, plans
from tolerances import check, expected


@contextlib.contextmanager
def short_registers():
    """Rows of more than 64 elements are looped, in pieces of 32, and sums leave the registers every second tile.

    Of pRMSNorm's, those with k up to 32 are streamed.
    """
    names = ("forward", "backward", "backward_rows", "backward_columns", "gated_backward", "stream", "LEAF")
    saved = tuple(getattr(choices, name) for name in names)
    looped = choices.Choice(block=32, rows=1, warps=1, looped=True, programs=6)
    choices.forward = lambda n, *a: replace(looped, programs=0) if n > 64 else saved[0](n, *a)
    choices.backward = lambda n, *a: None if n > 64 else replace(saved[1](n, *a), hold=n % 2 == 0, rows=4)
    choices.backward_rows = choices.backward_columns = lambda *a: looped
    choices.stream = lambda n, k, *a: looped if n > 64 and k <= 32 else None
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


# ---- the cases of the other backends ----


def conformance(case: Case) -> None:
    conforms(EAGER, case)


def conformance_without_cpp(case: Case) -> None:
    """As where the C++ calls are not built: a lent machine, or a torch that a wheel has none for."""
    with mock.patch.object(functional, "nodes", None), mock.patch.object(plans, "describe", plans._describe):
        plans.plans.clear()
        conforms(EAGER, case)
    plans.plans.clear()


def looped_conformance(case: Case) -> None:
    with short_registers():
        conforms(EAGER, case)


def persistent_conformance(case: Case) -> None:
    """A program has several tiles."""
    real = choices.forward

    def few(n: int, *how: object) -> choices.Choice:
        return replace(choices.persistent(n, *how[:3]), programs=1)

    _conforms_by(few, real, case)


def conformance_in_parts(case: Case) -> None:
    _conforms_by(lambda n, *how: choices.parts(n, *how[:3]), choices.forward, case)


def _conforms_by(choose, usual, case: Case) -> None:
    """Forward passes launch the choices of ``choose``, which asks the usual function for the whole row's."""
    made, inside = [], False

    def forward(n: int, *how: object) -> choices.Choice:
        nonlocal inside
        if inside:
            return usual(n, *how)
        inside = True
        made.append(choose(n, *how))
        inside = False
        return made[-1]

    plans.plans.clear()
    with mock.patch.object(choices, "forward", forward), mock.patch.object(choices, "stream", return_value=None):
        conforms(EAGER, case)
    plans.plans.clear()
    assert all(choice.programs or choice.rest[0] for choice in made)
    assert made


def gated(case: gated_cases.Case) -> None:
    gated_cases.kernels_conform(case)


def looped_gated(case: gated_cases.Case) -> None:
    """Sums over several leaves, tiles that are read twice."""
    with short_registers():
        gated_cases.kernels_conform(case)


def silu() -> None:
    z = torch.cat([torch.linspace(-120, 120, 10_000), -torch.logspace(-45, 2, 2000)])
    gated_cases.silu_is_right(z.view(12, 1000))


def quantized(case: dict) -> None:
    quantized_cases.conforms(rms_norm_quantized, case)


def looped_quantized(case: dict) -> None:
    with short_registers():
        quantized_cases.conforms(rms_norm_quantized, case)


def every_code_and_every_tie(code: torch.dtype) -> None:
    quantized_cases.every_code_and_every_tie(rms_norm_quantized, code)
    with short_registers():
        quantized_cases.every_code_and_every_tie(rms_norm_quantized, code)


def quantized_rows_without_a_scale(code: torch.dtype) -> None:
    quantized_cases.rows_without_a_scale(rms_norm_quantized, code)


# ---- numbers that are rare ----


def rare_row(n: int, operation: str, exponent: int) -> None:
    """A row whose squares leave float32's range, between usual ones; looped if n > 64."""
    x = torch.randn(3, n) * torch.tensor([1.0, 2.0**exponent, 1.0])[:, None]
    w, eps, p = torch.randn(n), 1e-6 if exponent > 0 else 0.0, 0.5 if operation == "rms_norm" else 1.0
    with short_registers():
        y = layer_norm(x, (n,), w, None, eps) if operation == "layer_norm" else rms_norm(x, (n,), w, eps, p=p)
    assert torch.isfinite(y).all()
    inputs = SimpleNamespace(x=x, dy=torch.zeros_like(x), weight=w, bias=None)
    check(y, expected(Case(operation, n=n, rows=3, p=p, eps=eps), inputs)["y"], "y")


def rare_gradient(n: int, operation: str, exponent: int, gradient: int) -> None:
    """Such a row's gradient, under one so small or so large that products of the two leave the range."""
    eps = 0.0 if operation == "rms_norm" else 1e-30
    p = 0.5 if operation == "rms_norm" and exponent < 100 else 1.0
    x = torch.randn(3, n) * torch.tensor([1.0, 2.0**exponent, 1.0])[:, None]
    dy = torch.randn(3, n) * torch.tensor([1.0, 2.0**gradient, 1.0])[:, None]
    leaf, w = x.clone().requires_grad_(), torch.randn(n)
    with short_registers():
        norm = rms_norm(leaf, (n,), w, eps, p=p) if operation == "rms_norm" else layer_norm(leaf, (n,), w, None, eps)
        (dx,) = torch.autograd.grad(norm, leaf, dy)
    case = Case(operation, n=n, rows=3, p=p, eps=eps, weight=torch.float32)
    check(dx, expected(case, SimpleNamespace(x=x, dy=dy, weight=w, bias=None))["dx"], "dx")


def large_in_a_program_of_its_own(n: int, dtype: torch.dtype, exponent: int, gradient: int) -> None:
    """Rows in registers, one a program: usual ones, then one with sums that overflow at the usual scale."""
    assert choices.forward(n, dtype.itemsize).rows == choices.backward(n, dtype.itemsize).rows == 1
    x = (torch.randn(3, n).clamp_(-1.9, 1.9) * torch.tensor([1.0, 2.0**exponent, 1.0])[:, None]).to(dtype)
    dy = (torch.randn(3, n) * torch.tensor([1.0, 2.0**gradient, 1.0])[:, None]).to(dtype)
    leaf, w = x.clone().requires_grad_(), torch.randn(n, requires_grad=True)
    y = rms_norm(leaf, (n,), w, 1e-6)
    dx, dweight = torch.autograd.grad(y, (leaf, w), dy)
    case = Case("rms_norm", n=n, rows=3, eps=1e-6, dtype=dtype, weight=torch.float32)
    wanted = expected(case, SimpleNamespace(x=x, dy=dy, weight=w.detach(), bias=None))
    check(y, wanted["y"], "y")
    check(dx, wanted["dx"], "dx")
    check(dweight, wanted["dweight"], "dweight")


def beyond_the_first_k(n: int, small: int, large: int) -> None:
    """Elements that the statistic leaves out overflow only where their results do."""
    row = torch.randn(2, 40)
    row[:, :4] *= 2.0**small
    row[:, 4:] *= 2.0**large
    x = torch.cat([row] * (n // 40), 1)
    with short_registers():
        y = rms_norm(x, (n,), None, 0.0, p=4 / n)
    inputs = SimpleNamespace(x=x, dy=torch.zeros_like(x), weight=None, bias=None)
    check(y, expected(Case(n=n, rows=2, p=4 / n, eps=0.0, weight=None), inputs)["y"], "y")


def not_finite(n: int) -> None:
    """NaN stays in its row, infinity gives what torch gives, zeros at eps = 0 are 0/0."""
    x = torch.randn(4, n)
    x[0, 3], x[1, 2], x[2] = float("nan"), float("inf"), 0
    with short_registers():
        found = rms_norm(x, (n,), eps=0.0)
    wanted = torch.nn.functional.rms_norm(x, (n,), eps=0.0)
    torch.testing.assert_close(found, wanted, equal_nan=True, rtol=1e-6, atol=1e-6)


# ---- rows, heads and memory ----


def a_row_alone(dtype: torch.dtype, n: int) -> None:
    """Bits do not depend on the batch, the place in it, or on how its rows are strided."""
    x, w = torch.randn(70, n).to(dtype), torch.randn(n)
    whole = rms_norm(x, (n,), w)
    for row in (0, 1, 37, 69):
        assert torch.equal(rms_norm(x[row : row + 1].clone(), (n,), w)[0], whole[row])
    padded = torch.zeros(70, 2, n, dtype=dtype)
    padded[:, 1] = x
    assert torch.equal(rms_norm(padded[:, 1], (n,), w), whole)


def heads() -> None:
    """A gain for each head, forward and backward; each head has its own sums."""
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


def no_rows() -> None:
    w, nothing = torch.randn(8, requires_grad=True), torch.empty(0, 8, requires_grad=True)
    dx, dw = torch.autograd.grad(rms_norm(nothing, (8,), w).sum(), (nothing, w))
    assert dx.shape == (0, 8)
    assert torch.equal(dw, torch.zeros(8))


def in_place() -> None:
    x, residual, w = torch.randn(6, 8), torch.randn(6, 8), torch.randn(8)
    wanted, ours = rms_norm(x, (8,), w), x.clone()
    assert torch.equal(rms_norm(ours, (8,), w, out=ours), wanted)
    assert torch.equal(ours, wanted)
    normed, new = add_rms_norm(x.clone(), residual, (8,), w)
    ours, stream = x.clone(), residual.clone()
    add_rms_norm(ours, stream, (8,), w, inplace=True)
    assert torch.equal(ours, normed)
    assert torch.equal(stream, new)


def long_partial_rows_in_place() -> None:
    """Programs of one row read its head: none may overwrite it while the others run."""
    x, residual, w = torch.randn(6, 100), torch.randn(6, 100), torch.randn(100)
    with short_registers():
        wanted = rms_norm(x, (100,), w, p=0.2)
        ours, other = x.clone(), torch.empty_like(x)
        torch.testing.assert_close(rms_norm(ours, (100,), w, p=0.2, out=ours), wanted)
        torch.testing.assert_close(rms_norm(x, (100,), w, p=0.2, out=other), wanted)
        normed, new = add_rms_norm(x, residual, (100,), w, p=0.2)
        ours, stream = x.clone(), residual.clone()
        add_rms_norm(ours, stream, (100,), w, p=0.2, inplace=True)
    torch.testing.assert_close(ours, normed)
    assert torch.equal(stream, new)


def outputs_between_inputs() -> None:
    """An output may have rows between the input's. One that covers rows not yet read is refused."""
    w, packed, shifted = torch.randn(8), torch.randn(6, 2, 8), torch.randn(7, 8)
    wanted = rms_norm(packed[:, 0].clone(), (8,), w)
    assert torch.equal(rms_norm(packed[:, 0], (8,), w, out=packed[:, 1]), wanted)
    with pytest.raises(ValueError, match="share memory"):
        rms_norm(shifted[:6], (8,), w, out=shifted[1:])


def too_many_levels_of_strides() -> None:
    w, spread = torch.randn(8), torch.randn(2, 2, 2, 2, 2, 2, 2, 2, 8)[:, 0, :, 0, :, 0, :, 0]
    torch.testing.assert_close(rms_norm(spread, (8,), w), rms_norm(spread.clone(), (8,), w))


def under_vmap() -> None:
    w, many = torch.randn(8), torch.randn(3, 6, 8)
    torch.testing.assert_close(torch.vmap(lambda t: rms_norm(t, (8,), w))(many), rms_norm(many, (8,), w))


def freed_memory() -> None:
    """A kernel that read at its address, null or an offset, would end the device's context for the whole process."""
    x, w, many = torch.randn(2, 8), torch.ones(8), torch.ones(24)
    gone, gain = many[8:].view(2, 8), many[8:16]
    many.untyped_storage().resize_(0)
    for call in (
        lambda: rms_norm(gone, (8,)),
        lambda: layer_norm(x, (8,), w, gain),
        lambda: add_rms_norm(x, gone, (8,), w),
        lambda: rms_norm(x, (8,), w, out=gone),
        lambda: rms_norm_gated(x, gone, (8,), w),
        lambda: rms_norm_quantized(gone, (8,), w),
    ):
        with pytest.raises(ValueError, match=r"must have its .* elements in memory"):
            call()


def gradients_of_other_parameters() -> None:
    """Calls that differ in their gradients' dtype or shape alone have plans of their own."""
    x, dy = torch.randn(6, 4, 16, dtype=torch.bfloat16).requires_grad_(), torch.randn(6, 4, 16, dtype=torch.bfloat16)
    plans.plans.clear()
    for shape in ((16,), (4, 16), (16,)):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            for gain in (None, torch.ones(shape)):
                b = torch.zeros(shape, dtype=dtype, requires_grad=True)
                (found,) = torch.autograd.grad(rms_norm(x, (16,), gain, bias=b), b, dy)
                wanted = dy.double().sum((0, 1) if len(shape) == 1 else 0)
                torch.testing.assert_close(found.double(), wanted, rtol=2**-7, atol=1e-6)
                assert found.dtype == dtype


def outputs_that_overlap_themselves() -> None:
    """Programs that write to the same address would race."""
    x, memory = torch.randn(4, 8), torch.randn(64)
    sliding = memory.as_strided((4, 8), (4, 1))
    for call in (
        lambda: rms_norm(x, (8,), out=torch.empty(8).expand(4, 8)),
        lambda: rms_norm(sliding, (8,), out=sliding),
        lambda: add_rms_norm(sliding, x, (8,), inplace=True),
        lambda: add_rms_norm(x, torch.randn(8).expand(4, 8), (8,), inplace=True),
    ):
        with pytest.raises(ValueError, match=r"overlap|share|more than one element"):
            call()


def a_kernel_that_cannot_be_loaded_now() -> None:
    """While a graph is captured the composite serves, with a warning, and later calls have their kernel."""
    x = torch.randn(3, 40)
    plans.plans.clear()

    def capturing(*_: object) -> None:
        raise launch.Capturing("a CUDA graph is being captured")

    with mock.patch.object(launch, "launcher", capturing), pytest.warns(UserWarning, match="being captured"):
        captured = rms_norm(x, (40,))
    assert not plans.plans
    torch.testing.assert_close(captured, rms_norm(x, (40,)))
    assert len(plans.plans) == 1


# ---- what the compiler and the device are told ----


def aligned_addresses(n: int, p: float) -> None:
    """Addresses, those of scratch memory too, are multiples of BYTES; a grid's second axis is one that devices take."""
    real, checked_launches = launch.launcher, []

    def launcher(kernel, pointers, wide, constants, choice, device):
        run, least = real(kernel, pointers, wide, constants, choice, device), dict(constants).get("BYTES", 1)

        def checked(x, y, tensors, addresses, integers):
            assert all(address % least == 0 for address in addresses), f"{kernel.__name__}: {addresses}"
            assert y <= choices.MOST_Y
            checked_launches.append(kernel)
            run(x, y, tensors, addresses, integers)

        return checked

    with short_registers(), mock.patch.object(launch, "launcher", launcher):
        x, w, b = (torch.randn(*shape, requires_grad=True) for shape in ((7, n), (n,), (n,)))
        rms_norm(x, (n,), w, bias=b, p=p).sum().backward()
    assert len(checked_launches) >= 3  # forward, backward, finish


def more_heads_than_a_grid_has_programs() -> None:
    many, gain = torch.ones(1, choices.MOST_Y + 1, 72), torch.ones(choices.MOST_Y + 1, 72)
    given = many, None, many, gain, torch.empty_like(many), None, None, 0, (72,), None, 1.0, 0
    with short_registers():
        assert not functions.norm_backward(*given)


def no_compilation_for_another_number_of_rows() -> None:
    """A new batch size makes a plan, and nothing that would be compiled."""
    plans.plans.clear()
    launch.launcher.cache_clear()
    w = torch.randn(16, requires_grad=True)
    for rows in (1, 2, 3, 16, 17, 100):
        x = torch.randn(rows, 16, requires_grad=True)
        rms_norm(x, (16,), w).sum().backward()
    assert launch.launcher.cache_info().misses == 3  # forward, backward, finish
    known = len(plans.plans)
    rms_norm(torch.randn(17, 16), (16,), w.detach())
    assert len(plans.plans) == known


def the_same_gradient_twice() -> None:
    """The order of dweight's sums is fixed, so two calls agree bit for bit."""
    x, w, dy = torch.randn(300, 20, requires_grad=True), torch.randn(20, requires_grad=True), torch.randn(300, 20)
    one, other = (torch.autograd.grad(rms_norm(x, (20,), w), (x, w), dy) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
