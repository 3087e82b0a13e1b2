"""Derivatives of the recurrent modules: of both orders, through the weights, with frozen parameters, hooks and cuts."""

import pytest
import torch

from recurrent_cases import LAYERS, assert_near, call, functional, make, states
from rmsnorm.torch.rnn import base, composite
from rmsnorm.torch.rnn.functional import run_layer


@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize(("placement", "p"), [("paper", 0.3), ("haste", 1.0)])
def test_first_and_second_derivatives(cell, placement, p):
    module = make(cell, p=p, placement=placement, input_size=2, hidden=3)
    x = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)
    h0, c0 = states(module, 2)
    names, parameters = zip(*module.named_parameters(), strict=True)
    given = [x, h0, *([] if c0 is None else [c0])]

    def run(*tensors):
        c = tensors[2] if c0 is not None else None
        return functional(module, tensors[0], tensors[1], c, names, tensors[len(given) :])

    inputs = (*given, *(q.detach().requires_grad_() for q in parameters))
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


def test_a_gradient_penalty_reaches_the_weights():
    module = make("GRU", placement="dreamer")
    x = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)

    def penalty(run):
        base.run_layer, before = run, base.run_layer
        try:
            (dx,) = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)
            return torch.autograd.grad(dx.square().sum(), list(module.parameters()))
        finally:
            base.run_layer = before

    assert_near(penalty(run_layer), penalty(composite.forward), 1e-11)


@pytest.mark.parametrize("cell", LAYERS)
def test_some_parameters_frozen(cell):
    module = make(cell)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    full = torch.autograd.grad(module(x)[0].square().sum(), list(module.parameters()))
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name.startswith("gain"))
    module(x)[0].square().sum().backward()
    for (name, parameter), expected in zip(module.named_parameters(), full, strict=True):
        if name.startswith("gain"):
            assert_near([parameter.grad], [expected], 1e-12)
        else:
            assert parameter.grad is None


@pytest.mark.parametrize("cell", LAYERS)
def test_backward_twice_and_outputs_changed_in_place(cell):
    module = make(cell)
    x = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    out = module(x)[0]
    loss = out.square().sum()
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(loss, x)
    assert torch.equal(first, second)
    out = module(x)[0]
    changed = torch.autograd.grad(out.mul_(2.0).sum(), x)
    assert_near(changed, torch.autograd.grad((module(x)[0] * 2.0).sum(), x), 1e-12)


@pytest.mark.parametrize("cell", LAYERS)
def test_hooks_that_change_strides(cell):
    module = make(cell)
    x = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(module(x)[0].square().sum(), x)
    turned = lambda t: t.t().contiguous().t() if t.dim() == 2 else t  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(turned, lambda t: t):
        loss = module(x)[0].square().sum()
    assert_near(torch.autograd.grad(loss, x), expected, 1e-12)


@pytest.mark.parametrize("cell", LAYERS)
def test_truncated_backpropagation(cell):
    """Detached states cut the graph, and nothing else."""
    module = make(cell)
    x = torch.randn(8, 3, 5, dtype=torch.float64)
    h0, c0 = states(module, 3)
    whole = call(module, x, h0, c0)[0]
    first, h, c = call(module, x[:5], h0, c0)
    second, *_ = call(module, x[5:], h.detach(), None if c is None else c.detach())
    assert_near([torch.cat((first, second))], [whole], 1e-13)
    assert torch.autograd.grad(second.sum(), h0, allow_unused=True)[0] is None
    assert torch.autograd.grad(whole[5:].sum(), h0)[0].any()


@pytest.mark.parametrize("cell", LAYERS)
def test_second_derivatives_with_inputs_that_are_not_contiguous(cell):
    """A copy that the layer makes of them belongs to the graph."""
    module = make(cell, placement="haste", input_size=2, hidden=3)
    x = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)  # (batch, features, steps)
    start = torch.randn(1, 1, 3, dtype=torch.float64, requires_grad=True)

    def penalty(copied):
        given, state = x[:, :2].permute(2, 0, 1), start.expand(1, 2, 3)
        given, state = (given.contiguous(), state.contiguous()) if copied else (given, state)
        out = call(module, given, state, state if cell == "LSTM" else None)[0]
        first = torch.autograd.grad(out.pow(3).sum(), (x, start), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), (x, start, *module.parameters()))

    assert_near(penalty(copied=False), penalty(copied=True), 1e-11)
