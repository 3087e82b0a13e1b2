"""Recurrent modules to test, how they are called, and how near two lists of results are."""

import torch

from rmsnorm.torch import GRU, LSTM, GRUCell, LSTMCell

MODULES = {"GRU": GRU, "LSTM": LSTM}
CELLS = {"GRU": GRUCell, "LSTM": LSTMCell}
LAYERS = list(MODULES)


def make(cell, norm="rms", p=1.0, placement="paper", input_size=5, hidden=19, dtype=torch.float64, **how):
    """A module with random gains and biases, so that a result without one of them is wrong."""
    module = MODULES[cell](input_size, hidden, norm=norm, p=p, placement=placement, dtype=dtype, **how)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(1.0 if name.startswith("gain") else 0.0, 0.5)
    return module


def states(module, batch, dtype=torch.float64):
    shape = (module.num_layers * (2 if module.bidirectional else 1), batch, module.hidden_size)
    h0 = torch.randn(shape, dtype=dtype, requires_grad=True)
    c0 = torch.randn(shape, dtype=dtype, requires_grad=True) if module.cell == "LSTM" else None
    return h0, c0


def call(module, x, h0, c0, **how):
    if c0 is None:
        out, h_n = module(x, h0, **how)
        return out, h_n, None
    out, (h_n, c_n) = module(x, (h0, c0), **how)
    return out, h_n, c_n


def functional(module, x, h0, c0, names, parameters):
    """The module as a function of everything that it depends on."""
    hx = h0 if c0 is None else (h0, c0)
    out, last = torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x, hx))
    return (out, *(last if isinstance(last, tuple) else (last,)))


def results(outputs, inputs):
    """Outputs, and the gradients of a sum of all of them with random weights."""
    outputs = [t for t in outputs if t is not None]
    generator = torch.Generator().manual_seed(1)
    loss = sum((t * torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype)).sum() for t in outputs)
    return [t.detach() for t in outputs] + list(torch.autograd.grad(loss, inputs))


def assert_near(actual, expected, tolerance):
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype or b.dtype == torch.float64
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        assert (a.double() - b.double()).abs().max().item() <= tolerance * scale if b.numel() else True
