"""The modules are torch's: signature, state, copies, and their place in a live model."""

import copy
import inspect
import io
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from norm_modules import weighted
from rmsnorm.torch import LayerNorm, RMSNorm, rms_norm

N = 48


@pytest.mark.parametrize(("ours", "theirs"), [(RMSNorm, nn.RMSNorm), (LayerNorm, nn.LayerNorm)])
def test_signature_state_and_attributes_are_torchs(ours, theirs):
    positional = [p for p in inspect.signature(theirs.__init__).parameters.values() if p.default is not p.empty]
    for parameter in positional:
        assert inspect.signature(ours.__init__).parameters[parameter.name].default == parameter.default
    for shape in (N, (3, N), torch.Size([N])):
        mine, other = weighted(ours(shape, 1e-3)), theirs(shape, 1e-3)
        assert mine.normalized_shape == other.normalized_shape
        assert (mine.eps, mine.elementwise_affine) == (other.eps, other.elementwise_affine)
        assert list(mine.state_dict()) == list(other.state_dict())
        other.load_state_dict(mine.state_dict())
        again = ours(shape, 1e-3)
        again.load_state_dict(other.state_dict())
        x = torch.randn(2, 3, N)
        torch.testing.assert_close(mine(x), other(x), rtol=1e-5, atol=1e-5)
        assert torch.equal(again(x), mine(x))


def test_initial_parameters():
    assert torch.equal(RMSNorm(N).weight.detach(), torch.ones(N))
    assert torch.equal(RMSNorm(N, zero_centered=True).weight.detach(), torch.zeros(N))
    assert torch.equal(RMSNorm(N, bias=True).bias.detach(), torch.zeros(N))
    assert RMSNorm(N).bias is None
    bare = RMSNorm(N, elementwise_affine=False)
    assert bare.weight is None
    assert not bare.state_dict()
    assert RMSNorm((2, N), dtype=torch.bfloat16).weight.dtype == torch.bfloat16
    x = torch.randn(3, N)
    assert torch.equal(RMSNorm(N, zero_centered=True)(x), RMSNorm(N)(x))
    assert LayerNorm(N, bias=False).bias is None


def test_repr_shows_what_was_chosen():
    text = repr(RMSNorm(N, eps=1e-6, p=0.25, zero_centered=True, casting="once", bias=True))
    for part in (str(N), "eps=1e-06", "p=0.25", "zero_centered=True", "bias=True"):
        assert part in text
    assert "elementwise_affine=True" in repr(RMSNorm(N))


@pytest.mark.parametrize(
    "make",
    [
        lambda: RMSNorm(N, 1e-6, bias=True, p=0.5, zero_centered=True),
        lambda: RMSNorm(N, casting="llama"),
        lambda: LayerNorm(N),
    ],
    ids=["rms", "llama", "layer"],
)
def test_copies(make):
    module, x = weighted(make()), torch.randn(3, N)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(buffer, weights_only=False)):
        assert repr(twin) == repr(module)
        assert torch.equal(twin(x), module(x))
        assert all(a is not b for a, b in zip(twin.parameters(), module.parameters(), strict=True))


def test_the_place_of_a_norm_in_a_live_model():
    """Swapped in mid-training with its Parameter and the optimiser's state, training goes on as it would have."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(N, N), weighted(nn.RMSNorm(N)), nn.Linear(N, 3))
    data, target = torch.randn(64, N), torch.randint(3, (64,))

    def train(model, optimizer):
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(data), target)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    train(model, optimizer)
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    ours = RMSNorm(N)
    ours.weight = twin[1].weight
    twin[1] = ours
    assert list(twin.state_dict()) == list(model.state_dict())
    expected, found = train(model, optimizer), train(twin, twin_optimizer)
    assert expected[-1] < expected[0]
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    torch.testing.assert_close(twin[1].weight, model[1].weight, rtol=1e-3, atol=1e-4)
    assert twin_optimizer.state[twin[1].weight]["step"] == 40


def test_functional_call_and_ensembles():
    modules = [weighted(RMSNorm(N, 1e-6, bias=True)) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(modules)
    x = torch.randn(3, 4, N)

    def call(parameters, buffers, x):
        return torch.func.functional_call(modules[0], (parameters, buffers), (x,))

    found = torch.vmap(call)(parameters, buffers, x)
    torch.testing.assert_close(
        found, torch.stack([m(a) for m, a in zip(modules, x, strict=True)]), rtol=1e-5, atol=1e-6
    )
    one = torch.func.functional_call(modules[0], dict(modules[1].named_parameters()), (x,))
    assert torch.equal(one, modules[1](x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    """A float32 gain on 16-bit activations keeps their dtype; the gradient of the gain is float32."""
    linear, norm, x = nn.Linear(N, N), weighted(RMSNorm(N, 1e-6)), torch.randn(5, N)
    with torch.autocast("cpu", dtype):
        hidden = linear(x)
        y = norm(hidden)
    assert (hidden.dtype, y.dtype) == (dtype, dtype)
    assert torch.equal(y, rms_norm(hidden, (N,), norm.weight, 1e-6))
    y.float().pow(2).sum().backward()
    assert norm.weight.grad.dtype == torch.float32
    assert norm.weight.grad.abs().max() > 0
    assert linear.weight.grad.abs().max() > 0
