"""TorchScript: norms are scripted as torch's are, recurrences traced."""

import io

import pytest
import torch

from rmsnorm.torch import GRU, LSTM, GRUCell, LayerNorm, LSTMCell, RMSNorm, RMSNormGated

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

NORMS = {
    "RMSNorm": lambda: RMSNorm(8),
    "without a gain": lambda: RMSNorm((3, 8), 1e-3, elementwise_affine=False),
    "every option": lambda: RMSNorm(8, bias=True, p=0.3, zero_centered=True, casting="llama", heads=3),
    "LayerNorm": lambda: LayerNorm(8),
    "LayerNorm without a bias": lambda: LayerNorm((3, 8), bias=False),
    "RMSNormGated": lambda: RMSNormGated(8, 1e-4, norm_before_gate=True, groups=2, p=0.5),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms_are_scripted(name):
    """Alone and within a model, saved and loaded, with gradients."""
    module = NORMS[name]()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    arguments = [torch.randn(4, 3, 8, requires_grad=True) for _ in range(1 + (name == "RMSNormGated"))]
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module), buffer)
    buffer.seek(0)
    inputs = [*arguments, *module.parameters()]
    expected = module(*arguments)
    (wanted, found) = (
        torch.autograd.grad(run(*arguments).square().sum(), [*arguments, *run.parameters()])
        for run in (module, torch.jit.load(buffer))
    )
    assert len(wanted) == len(inputs)
    for t, same in zip(found, wanted, strict=True):
        torch.testing.assert_close(t, same, rtol=1e-6, atol=1e-6)
    if len(arguments) == 1:
        within = torch.jit.script(torch.nn.Sequential(torch.nn.Identity(), module))
        assert torch.equal(within(*arguments), expected)


@pytest.mark.parametrize(
    "module", [GRU(4, 8), LSTM(4, 8), GRUCell(4, 8), LSTMCell(4, 8)], ids=lambda m: type(m).__name__
)
def test_recurrences_are_traced(module):
    for whole in (module, torch.nn.Sequential(module)):
        with pytest.raises(NotImplementedError, match=f"does not compile {type(module).__name__}; use torch.export"):
            torch.jit.script(whole)
    x = torch.randn(3, 2, 4) if isinstance(module, (GRU, LSTM)) else torch.randn(2, 4)
    traced = torch.jit.trace(module, (x,))
    torch.testing.assert_close(traced(2 * x), module(2 * x), rtol=1e-5, atol=1e-6)
