"""The torch expressions where they are hard: rows far from zero, at the ends of the range, gates that vanish.

``vmap`` sends a call to the expression; a gradient with ``create_graph=True`` to that of the backward pass.
"""

import pytest
import torch

from rmsnorm import reference
from rmsnorm.torch import layer_norm, rms_norm, rms_norm_gated
from tolerances import around, check, smallest, ulp, wide

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def expression(function, *tensors):
    return torch.func.vmap(function)(*(t[None] for t in tensors))[0]


def gradient(function, x, dy):
    x = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(function(x), x, dy, create_graph=True)
    return found.detach()


@DTYPES
@pytest.mark.parametrize("offset", [0.0, 1e4, -1e6])
@pytest.mark.parametrize("n", [3, 1001])
def test_layer_norm_far_from_zero_is_as_exact_as_near_it(dtype, offset, n):
    """In units of the last place of σ-sized numbers, whatever the row's distance from zero."""
    torch.manual_seed(n)
    x, dy = torch.randn(32, n).to(dtype) + offset, torch.randn(32, n).to(dtype)
    exact = reference.layer_norm(wide(x, dtype), eps=1e-5)
    slope, _, _ = reference.layer_norm_vjp(wide(dy, dtype), wide(x, dtype), eps=1e-5)
    unit = torch.finfo(dtype).eps * 8
    y, dx = expression(lambda x: layer_norm(x, n), x), gradient(lambda x: layer_norm(x, n), x, dy)
    assert abs(wide(y, dtype) - exact).max() < unit * abs(exact).max()
    assert abs(wide(dx, dtype) - slope).max() < unit * abs(slope).max()


@DTYPES
@pytest.mark.parametrize("value", [1e-40, 0.1, -3.3, 1e30, 2e36, -3.3e38])
@pytest.mark.parametrize("n", [1, 3, 10, 1000])
def test_layer_norm_of_equal_elements_is_zero(dtype, value, n):
    x = torch.full((2, n), value, dtype=dtype)
    assert torch.equal(expression(lambda x: layer_norm(x, n), x), torch.zeros(2, n, dtype=dtype))
    assert gradient(lambda x: layer_norm(x, n), x, torch.randn(2, n, dtype=dtype)).isfinite().all()


@DTYPES
@pytest.mark.parametrize("size", [1.0, 1e30])
@pytest.mark.parametrize("eps", [1e34, 1e37, 1e77, 1e100, 1e300])
def test_an_eps_beyond_float32(dtype, size, eps):
    """√eps of 1e38 and more cannot be an element of a float32 row; the kernels take it."""
    x = torch.randn(4, 37).to(dtype) * size
    for function, norm in ((rms_norm, reference.rms_norm), (layer_norm, reference.layer_norm)):
        exact = norm(wide(x, dtype), eps=eps)
        found = expression(lambda x, f=function: f(x, 37, eps=eps), x)
        check(found, around(exact, 8 * ulp(abs(exact).max(-1, keepdims=True), dtype), dtype), "y")
        assert gradient(lambda x, f=function: f(x, 37, eps=eps), x, x).isfinite().all()


@DTYPES
def test_silu_of_the_expression_over_the_whole_range(dtype):
    """A row of ones is its own norm at eps = 0: what is left is silu(z), down to subnormal numbers."""
    ends = 120 if dtype == torch.float32 else 800
    z = torch.cat((torch.linspace(-ends, ends, 20_001), torch.tensor([0.0, -0.0]))).to(dtype)
    x = torch.ones_like(z)
    y = expression(lambda x, z: rms_norm_gated(x, z, z.shape, None, 0.0, norm_before_gate=True), x, z)
    exact = reference.rms_norm_gated(wide(x, dtype), wide(z, dtype), eps=0.0, norm_before_gate=True)
    check(y, around(exact, 6 * ulp(exact, dtype) + 1.1 * ends * smallest(dtype), dtype), "silu")


def test_gates_that_nearly_vanish_are_normalised():
    """silu(−90) is a subnormal number: 0 would leave 0/0, where the kernel has the right row."""
    x, z = torch.randn(3, 9), torch.full((3, 9), -90.0)

    def function(x, z):
        return rms_norm_gated(x, z, 9, None, 0.0)

    torch.testing.assert_close(expression(function, x, z), function(x, z), rtol=1e-6, atol=1e-6)
    derivatives = torch.func.jvp(function, (x, z), (x, torch.zeros_like(z)))[1]
    torch.testing.assert_close(derivatives, torch.zeros_like(x), rtol=0, atol=1e-5)  # scaling x changes nothing


def test_derivatives_of_silu_at_zero():
    """The two halves of the expression meet there: no derivative may be that of |z|."""
    z = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    ones = torch.ones_like(z)

    def of(function):
        found = [function(z).sum()]
        for _ in range(4):
            found.append(torch.autograd.grad(found[-1].sum(), z, create_graph=True)[0])
        return found[1:]

    ours = of(lambda z: rms_norm_gated(ones, z, 5, None, 0.0, norm_before_gate=True))
    for one, other in zip(ours, of(torch.nn.functional.silu), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_jagged_tensors_train():
    parts = [torch.randn(3, 8), torch.randn(5, 8)]
    weight = torch.randn(8)

    def train(function):
        x = torch.nested.nested_tensor(parts, layout=torch.jagged, requires_grad=True)
        function(x, (8,), weight).values().pow(3).sum().backward()
        return x.grad.values()

    torch.testing.assert_close(train(rms_norm), train(torch.nn.functional.rms_norm), rtol=1e-5, atol=1e-5)
