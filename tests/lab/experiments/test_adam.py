"""Adam with eps inside the root, against its equations in float64; saved and taken up again."""

import copy

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

from rmsnorm_lab.errors import UserError  # noqa: E402
from rmsnorm_lab.experiments.adam import EpsInRoot  # noqa: E402
from rmsnorm_lab.experiments.learner import optimizer_for  # noqa: E402
from rmsnorm_lab.experiments.recipes.common import TrainConfig  # noqa: E402

EPS, RATE = 1e-4, 0.01
CONFIG = TrainConfig(steps=1, batch=1, learning_rate=RATE, optimizer_eps=EPS, eps_in_root=True)


def gradients(steps):
    """From far below √eps to above it."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 3, generator=generator) * torch.logspace(-4, 0, 3) for _ in range(steps)]


def by_equations(p, gs, betas):
    """p after the steps: m̂ / √(v̂ + eps)."""
    p, m, v = p.double(), 0.0, 0.0
    for t, ((beta1, beta2), g) in enumerate(zip(betas, gs, strict=True), 1):
        g = g.double()
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        p = p - RATE * m / (1 - beta1**t) / (v / (1 - beta2**t) + EPS).sqrt()
    return p


def taken(optimizer, parameter, gs):
    for group in optimizer.param_groups:
        group["lr"] = RATE
    for g in gs:
        parameter.grad = g.clone()
        optimizer.step()


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_divides_by_the_root_of_eps_too(fused):
    start = torch.randn(4, 3)
    parameter = torch.nn.Parameter(start.clone())
    optimizer = EpsInRoot([parameter], lr=RATE, betas=(0.9, 0.999), eps=EPS, fused=fused)
    gs = gradients(5)
    taken(optimizer, parameter, gs)
    expected = by_equations(start, gs, [(0.9, 0.999)] * 5)
    torch.testing.assert_close(parameter.detach().double(), expected, rtol=0, atol=1e-6)
    plain = torch.nn.Parameter(start.clone())
    taken(torch.optim.Adam([plain], lr=RATE, eps=EPS), plain, gs)
    assert (plain - parameter).abs().max() > RATE  # where gradients are small the other form moves further


def test_the_recipe_decides_and_a_saved_state_goes_on():
    model = torch.nn.Linear(3, 4, bias=False)
    start = model.weight.detach().clone()
    optimizer = optimizer_for(model, CONFIG, "cpu")
    assert isinstance(optimizer, EpsInRoot)
    gs = gradients(6)
    taken(optimizer, model.weight, gs[:3])
    again, saved = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict())
    other = optimizer_for(again, CONFIG, "cpu")
    other.load_state_dict(saved)
    taken(other, again.weight, gs[3:])
    expected = by_equations(start, gs, [CONFIG.betas] * 6)
    torch.testing.assert_close(again.weight.detach().double(), expected, rtol=0, atol=1e-6)


def test_adamw_has_no_such_form():
    with pytest.raises(UserError, match=r"train\.eps_in_root must be false with train\.optimizer=adamw"):
        TrainConfig(steps=1, batch=1, learning_rate=RATE, optimizer="adamw", eps_in_root=True)
