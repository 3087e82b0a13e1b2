"""Awkward memory (sign bits, outputs that interleave with inputs or with themselves, reversed rows), awkward torch."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import composites
from rmsnorm import numpy as rn
from rmsnorm.torch import LayerNorm, add_rms_norm, functional, layer_norm, rms_norm


def negative(*shape: int) -> torch.Tensor:
    """A tensor whose sign is a flag of torch's, not in its memory."""
    t = torch.complex(torch.randn(shape), torch.randn(shape)).conj().imag
    assert t.is_neg()
    return t


@pytest.mark.parametrize("place", ["input", "weight", "bias"])
@pytest.mark.parametrize("n", [1, 8])
def test_the_negative_bit_is_seen(place, n):
    given = {"input": torch.randn(5, n), "weight": torch.randn(n), "bias": torch.randn(n)}
    given[place] = negative(*given[place].shape)
    plain = {name: t.clone() for name, t in given.items()}
    for t in (given["input"], plain["input"]):
        t.requires_grad_()

    def run(g):
        y = rms_norm(g["input"], (n,), g["weight"], 1e-3, bias=g["bias"])
        z = layer_norm(g["input"], (n,), g["weight"], g["bias"])
        (dx,) = torch.autograd.grad(y.square().sum() + z.sum(), g["input"])
        return y, z, dx

    for found, expected in zip(run(given), run(plain), strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6)


def test_the_negative_bit_of_a_gradient_and_of_a_residual():
    x, dy, residual = torch.randn(5, 8, requires_grad=True), negative(5, 8), negative(5, 8)
    (found,) = torch.autograd.grad(rms_norm(x, (8,)), x, dy)
    (expected,) = torch.autograd.grad(rms_norm(x, (8,)), x, dy.clone())
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6)
    for a, b in zip(add_rms_norm(x, residual, (8,)), add_rms_norm(x, residual.clone(), (8,)), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)


def test_out_with_the_negative_bit_is_refused():
    with pytest.raises(ValueError, match="negative bit"):
        rms_norm(torch.randn(5, 8), (8,), out=negative(5, 8))


def test_out_interleaved_with_the_input_in_one_buffer():
    packed = torch.randn(7, 2, 16)
    expected = rms_norm(packed[:, 0].clone(), (16,))
    assert torch.equal(rms_norm(packed[:, 0], (16,), out=packed[:, 1]), expected)
    assert torch.equal(packed[:, 1], expected)
    columns = torch.randn(7, 32)
    expected = rms_norm(columns[:, ::2].clone(), (16,))
    assert torch.equal(rms_norm(columns[:, ::2], (16,), out=columns[:, 1::2]), expected)
    with pytest.raises(ValueError, match="share memory"):
        rms_norm(columns[:, ::2], (16,), out=columns[:, 1:17])
    array = np.random.default_rng(0).standard_normal((6, 32)).astype(np.float32)
    wanted = rn.rms_norm(array[:, :16].copy())
    assert np.array_equal(rn.rms_norm(array[:, :16], out=array[:, 16:]), wanted)


def test_out_that_overlaps_itself_is_refused():
    with pytest.raises(ValueError, match="one place in memory"):
        rms_norm(torch.randn(6, 33), (33,), out=torch.empty(100).as_strided((6, 33), (1, 1)))
    window = np.lib.stride_tricks.sliding_window_view(np.empty(38, np.float32), 33, writeable=True)
    with pytest.raises(ValueError, match="one place in memory"):
        rn.rms_norm(np.ones((6, 33), np.float32), out=window)


def test_reversed_rows_as_out():
    x = np.random.default_rng(0).standard_normal((6, 33)).astype(np.float32)
    expected, out = rn.rms_norm(x), np.empty_like(x)
    rn.rms_norm(x, out=out[::-1])
    assert np.array_equal(out[::-1], expected)
    view = x[::-1]
    assert np.array_equal(rn.rms_norm(view, out=view), expected[::-1])


def test_layer_norm_module_and_function_agree_on_no_eps():
    zeros = torch.zeros(2, 4)
    assert torch.equal(LayerNorm(4, eps=None)(zeros), layer_norm(zeros, (4,), eps=None))


def test_fake_tensors_outside_of_their_mode():
    fake = FakeTensorMode().from_tensor(torch.randn(3, 8))
    assert rms_norm(fake, (8,)).shape == (3, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p": [0.5]}, "p must be a number"),
        ({"p": "0.5"}, "p must be a number"),
        ({"p": 10**400}, "0 < p <= 1"),
        ({"eps": [1]}, "eps must be a number"),
        ({"eps": "1e-6"}, "eps must be a number"),
        ({"eps": 10**400}, "finite"),
        ({"eps": torch.tensor(1e-6, requires_grad=True)}, "eps must be a number"),  # it would get no gradient
        ({"p": torch.tensor(0.5, requires_grad=True)}, "p must be a number"),
    ],
)
def test_what_is_no_number_is_named(arguments, message):
    for call in (
        lambda: rms_norm(torch.ones(2, 8), (8,), **arguments),
        lambda: rn.rms_norm(np.ones((2, 8)), **arguments),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            call()


def test_a_bool_is_no_extent():
    for shape in (True, (True,), [True]):
        with pytest.raises(TypeError, match="must be an int or a sequence of ints, got"):
            rms_norm(torch.ones(2, 1), shape)


def test_torch_before_2_10(run_python):
    """Without DLPack's exchange API and torch_parallel_for, both taken away here, tensors are described from Python."""
    run_python(
        """
import glob, torch
if hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
    del torch.Tensor.__dlpack_c_exchange_api__
find, glob.glob = glob.glob, lambda pattern: []
from rmsnorm.torch import bindings, layer_norm, rms_norm

import composites
glob.glob = find
assert not bindings.exchanges and not bindings.shares_torch_threads
torch.manual_seed(0)
for shape in ((700, 256), (5, 3, 33)):
    n = shape[-1:]
    x, w, dy = torch.randn(shape, requires_grad=True), torch.randn(n, requires_grad=True), torch.randn(shape)
    exact = [t.detach().double().requires_grad_() for t in (x, w)]  # float32's own sum over 700 rows is off by 1e-5
    for mine, other in ((rms_norm, composites.rms_norm), (layer_norm, composites.layer_norm)):
        eps = 1e-5  # the default depends on the dtype
        y, z = mine(x, n, w, eps=eps), other(exact[0], n, exact[1], eps=eps)
        torch.testing.assert_close(y.double(), z, rtol=2e-6, atol=2e-6)
        for a, b in zip(torch.autograd.grad(y, (x, w), dy), torch.autograd.grad(z, exact, dy.double())):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)
x = torch.randn(3, 2, 8)
torch.testing.assert_close(torch.vmap(lambda t: rms_norm(t, (8,)))(x), rms_norm(x, (8,)))
try:
    rms_norm(torch.ones(2, 8), (8,), torch.ones(8, dtype=torch.int64))
except TypeError as error:
    assert "weight must be of a floating dtype" in str(error)
else:
    raise AssertionError("an integer weight passed")
"""
    )


@pytest.mark.parametrize("way", ["kernels", "composite"])
def test_large_elements_beyond_the_first_k(way):
    """Found by test_any_finite_row: multiplied by what brings √eps to 1 they overflowed, and their results do not."""
    norm = {"kernels": functional, "composite": composites}[way].rms_norm
    x = torch.tensor([[0.0, 6.64614e35], [1e-3, 5e35]])
    expected = x.double() / (x[:, :1].double().square() + 1e-5).sqrt()
    torch.testing.assert_close(norm(x, (2,), None, 1e-5, p=0.5).double(), expected, rtol=1e-6, atol=0)
