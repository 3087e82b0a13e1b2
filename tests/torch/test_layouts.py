"""Strides of results and gradients: those of ``torch.empty_like``, on every way a call can take."""

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rmsnorm.torch import add_rms_norm, layer_norm, rms_norm, rms_norm_gated, rms_norm_quantized

SHAPE = (3, 4, 5, 6)
WEIGHT = torch.rand(6, dtype=torch.float64) + 0.5


def permuted(order):
    """A dense tensor whose dimensions lie in memory in the given order, the first outermost."""
    return torch.randn([SHAPE[d] for d in order], dtype=torch.float64).permute([order.index(d) for d in range(4)])


LAYOUTS = {f"in memory {order}": lambda order=order: permuted(order) for order in itertools.permutations(range(4))} | {
    "channels_last": lambda: torch.randn(SHAPE, dtype=torch.float64).to(memory_format=torch.channels_last),
    "one channel": lambda: torch.randn(3, 1, 5, 6, dtype=torch.float64).to(memory_format=torch.channels_last),
    "expanded": lambda: torch.randn(3, 1, 5, 6, dtype=torch.float64).expand(SHAPE),
    "every second element": lambda: torch.randn(3, 4, 5, 12, dtype=torch.float64)[..., ::2],
    "every second, permuted": lambda: torch.randn(3, 5, 4, 12, dtype=torch.float64)[..., ::2].transpose(1, 2),
    "rows apart": lambda: torch.randn(3, 4, 5, 9, dtype=torch.float64)[..., :6],
    "empty": lambda: torch.randn(5, 0, 3, 6, dtype=torch.float64).transpose(0, 2),
}

# What is called, as a function of two tensors of one shape; each result or gradient is laid out as the tensor it is of.
CALLS = {
    "rms_norm": lambda x, z: (rms_norm(x, (6,), WEIGHT),),
    "pRMSNorm of (5, 6)": lambda x, z: (rms_norm(x, (5, 6), p=0.3),),
    "layer_norm": lambda x, z: (layer_norm(x, (6,), WEIGHT),),
    "add_rms_norm": lambda x, z: add_rms_norm(x, z, (6,), WEIGHT),
    "rms_norm_gated": lambda x, z: (rms_norm_gated(x, z, (6,), WEIGHT),),
}
OPERATORS = {
    "rms_norm": lambda x, z: (torch.ops.rmsnorm.rms_norm(x, [6], None, None, None, 1.0, False, "once"),),
    "layer_norm": lambda x, z: (torch.ops.rmsnorm.layer_norm(x, [6], None, None, None),),
    "add_rms_norm": lambda x, z: torch.ops.rmsnorm.add_rms_norm(x, z, [6], None, None, None, 1.0, False, "once"),
    "rms_norm_gated": lambda x, z: (torch.ops.rmsnorm.rms_norm_gated(x, z, [6], None, None, False, 2, 1.0),),
}


def same_strides(t, like):
    assert t.stride() == torch.empty_like(like).stride()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CALLS)
def test_results_and_gradients_are_laid_out_as_their_inputs(name, layout):
    x, z = LAYOUTS[layout](), LAYOUTS[layout]()
    plain = [t.clone(memory_format=torch.contiguous_format).requires_grad_() for t in (x, z)]
    expected = CALLS[name](*plain)
    wanted = torch.autograd.grad(sum(y.square().sum() for y in expected), plain, allow_unused=True)
    for y, like in zip(CALLS[name](x, z), (x, z), strict=False):  # without a gradient: another way
        same_strides(y, like)
    x, z = (t.detach().requires_grad_() for t in (x, z))
    results = CALLS[name](x, z)
    gradients = torch.autograd.grad(sum(y.square().sum() for y in results), (x, z), allow_unused=True)
    for found, right, likes in ((results, expected, (x, z)), (gradients, wanted, (x, z))):
        for t, same, like in zip(found, right, likes, strict=False):
            if t is not None:
                same_strides(t, like)
                torch.testing.assert_close(t, same, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPERATORS)
def test_fake_results_are_laid_out_as_real_ones(name, layout):
    given = LAYOUTS[layout](), LAYOUTS[layout]()
    mode = FakeTensorMode()
    fakes = [mode.from_tensor(t) for t in given]
    with mode:
        y = OPERATORS[name](*fakes)
    for real, fake in zip(OPERATORS[name](*given), y, strict=True):
        assert real.stride() == fake.stride() or real.numel() == 0  # torch's own fakes of empty tensors differ


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "empty"])
@pytest.mark.parametrize("name", CALLS)
def test_fakes_and_meta_tensors_are_laid_out_as_real_ones(name, layout):
    """Results and gradients of the functions; of the second tensor, the layout of the first, transposed."""
    given = LAYOUTS[layout](), LAYOUTS[layout]().transpose(0, 1).contiguous().transpose(0, 1)
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def strides(x, z):
        x, z = (t.detach().requires_grad_() for t in (x, z))
        results = CALLS[name](x, z)
        gradients = torch.autograd.grad(sum(y.square().sum() for y in results), (x, z), allow_unused=True)
        return [None if t is None else t.stride() for t in (*results, *gradients)]

    expected = strides(*given)
    with mode:
        assert strides(*map(mode.from_tensor, given)) == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "WEIGHT", WEIGHT.to("meta"))
        assert strides(*(t.to("meta") for t in given)) == expected


@pytest.mark.parametrize("layout", ["channels_last", "in memory (3, 1, 0, 2)", "every second, permuted"])
def test_a_compiled_step_has_the_layouts_of_an_eager_one(layout):
    torch._dynamo.reset()
    x, z = (LAYOUTS[layout]().requires_grad_() for _ in range(2))

    def step(x, z):
        y, total = add_rms_norm(layer_norm(x, 6), rms_norm_gated(x, z, 6), 6, WEIGHT)
        return y, total, *torch.autograd.grad(rms_norm(y * total, 6).square().sum(), (x, z))

    for t, expected in zip(torch.compile(step)(x, z), step(x, z), strict=True):
        same_strides(t, x)
        torch.testing.assert_close(t, expected, rtol=1e-12, atol=1e-12)


def test_quantised_results_are_contiguous():
    for layout in LAYOUTS:
        x = LAYOUTS[layout]()
        for q, scale in (rms_norm_quantized(x, 6), torch.compile(rms_norm_quantized, backend="eager")(x, 6)):
            assert q.is_contiguous()
            assert scale.is_contiguous()
