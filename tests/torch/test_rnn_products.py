"""The products of a recurrent layer by each library that torch may have, against float64."""

import pytest
import torch

from rmsnorm.torch import GRU, LSTM
from rmsnorm.torch.rnn import products

LIBRARIES = {
    "plain": (False, False),
    "MKL": (hasattr(torch.ops.mkl, "_mkl_linear") and torch.backends.mkl.is_available(), False),
    "oneDNN": (False, hasattr(torch.ops.mkldnn, "_linear_pointwise")),
}


@pytest.fixture(params=LIBRARIES)
def library(request, monkeypatch):
    """Makes products use one library, for matrices of every size."""
    mkl, onednn = LIBRARIES[request.param]
    if request.param != "plain" and not (mkl or onednn):
        pytest.skip(f"this torch has no packed product of {request.param}")
    monkeypatch.setattr(products, "_mkl", mkl)
    monkeypatch.setattr(products, "_onednn", onednn)
    monkeypatch.setattr(products, "FEWEST", 1)
    monkeypatch.setattr(products, "AT_ONCE", 0)
    monkeypatch.setattr(products, "COPIED_BYTES", 1)
    return request.param


def near(found, expected):
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 37])
def test_products(library, rows, transposed):
    weight = torch.randn(13, 29).t() if transposed else torch.randn(29, 13)
    x, bias, out = torch.randn(rows, 13), torch.randn(29), torch.randn(rows, 29)
    expected = x.double() @ weight.double().t()
    near(products.product(x, weight), expected)
    near(products.product(x, weight, bias), expected + bias)
    step = products.step_product(weight, rows, 50)
    for count in {rows, (rows + 1) // 2}:  # sequences have ended
        found, summed = out.clone(), out.clone()
        step.write(x[:count], found[:count])
        step.add(x[:count], summed[:count])
        near(found[:count], expected[:count])
        near(summed[:count], (expected + out)[:count])
        assert torch.equal(found[count:], out[count:])
        assert torch.equal(summed[count:], out[count:])


def test_parameters_with_strides(library):
    """oneDNN's product takes no strides of a bias, and no weight whose elements overlap."""
    module = GRU(8, 24)
    x = torch.randn(6, 3, 8)
    expected = module(x)[0].double()
    with torch.no_grad():
        for name, parameter in list(module.named_parameters()):
            apart = torch.nn.Parameter(torch.stack([parameter, torch.full_like(parameter, torch.nan)], -1)[..., 0])
            setattr(module, name, apart)
    near(module(x)[0], expected)
    overlapping = torch.nn.Parameter(torch.randn(79).unfold(0, 8, 1))
    found, copied = (
        torch.func.functional_call(module, {"weight_ih_l0": w}, (x,))[0]
        for w in (overlapping, overlapping.detach().clone(memory_format=torch.contiguous_format))
    )
    near(found, copied.double())


@pytest.mark.parametrize("kind", [GRU, LSTM])
def test_layers(library, kind):
    """Results and gradients, with ragged batches too."""
    module = kind(7, 24, bidirectional=True)
    twin = kind(7, 24, bidirectional=True, dtype=torch.float64)
    twin.load_state_dict(module.state_dict())
    sequences = [torch.randn(length, 7) for length in (40, 31, 31, 5)]
    for x in (torch.randn(40, 5, 7), torch.nn.utils.rnn.pack_sequence(sequences)):
        found = []
        for layer, given in ((module, x), (twin, x.to(torch.float64))):
            out = layer(given)[0]
            out = out.data if isinstance(out, torch.nn.utils.rnn.PackedSequence) else out
            found.append([out, *torch.autograd.grad(out.cos().sum(), list(layer.parameters()))])
        for one, reference in zip(*found, strict=True):
            torch.testing.assert_close(
                one.double(), reference, rtol=1e-4, atol=1e-4 * float(reference.detach().abs().max())
            )
