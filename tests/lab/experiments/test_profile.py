"""The profiled step: what of it is the normalisers', forward and backward, and what memory it takes."""

import gc
import time

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

from rmsnorm.torch import GRU  # noqa: E402
from rmsnorm_lab.experiments import profile  # noqa: E402
from rmsnorm_lab.experiments.learner import Setup  # noqa: E402
from rmsnorm_lab.experiments.memory import new_objects_only  # noqa: E402
from rmsnorm_lab.experiments.norms.base import mark  # noqa: E402
from rmsnorm_lab.experiments.recipes.common import Recipe, TrainConfig  # noqa: E402


def test_it_is_imported_without_lightning_fabric(run_python):
    run_python("import sys; sys.modules['lightning_fabric'] = None; import rmsnorm_lab.experiments.profile")


class Sleep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, forward, backward):
        ctx.seconds = backward
        time.sleep(forward)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(ctx.seconds)
        return gradient.clone(), None, None


class Sleeper(torch.nn.Module):
    def __init__(self, forward, backward):
        super().__init__()
        self.seconds = forward, backward

    def forward(self, x):
        return Sleep.apply(x, *self.seconds)


def sleepy_norm(forward, backward):
    return mark(Sleeper(forward, backward))


class Stub:
    """A task whose network is given."""

    recipe = Recipe("small", None, TrainConfig(steps=1, batch=4, learning_rate=1.0))

    def __init__(self, *modules):
        self.modules = modules

    def model(self, norm, kernels):
        return torch.nn.Sequential(torch.nn.Linear(8, 8), *self.modules)

    def batch(self, step, seed):
        return (torch.ones(4, 8),)

    def loss(self, model, batch):
        return model(batch[0]).sum()

    def weight(self, batch):
        return 4

    def initialise(self, model, seed):
        pass


@pytest.fixture(autouse=True)
def one_thread(set_threads):
    set_threads(1)


def test_the_share_is_of_norms_calls_and_of_the_nodes_they_made(monkeypatch):
    """Sleeps of 360 ms, of which the norm's 60 forward and 150 backward; the others' nodes come before and after.

    They are long enough that a loaded machine, which wakes each some milliseconds late, changes the share little."""
    monkeypatch.setattr(profile, "STEPS", 1)
    task = Stub(Sleeper(0.03, 0.045), sleepy_norm(0.06, 0.15), Sleeper(0.03, 0.045))
    assert profile.steps(task, Setup(), "rms").norm_share == pytest.approx(210 / 360, abs=0.1)


def test_where_no_call_tells_there_is_no_share():
    assert profile.steps(Stub(Sleeper(0, 0)), Setup(), "none").norm_share is None

    class First(torch.nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.gru = GRU(8, 8, norm=norm)

        def forward(self, x):
            return self.gru(x[None])[0]

    assert profile.steps(Stub(First("rms"), sleepy_norm(0, 0)), Setup(), "rms").norm_share is None
    assert profile.steps(Stub(First(None), sleepy_norm(0, 0)), Setup(), "rms").norm_share > 0


def test_peak_memory_counts_what_is_held_and_what_a_step_adds():
    """Linear(8, 8): 72 parameters, their gradients and Adam's two moments, 4 bytes each; the rest is the step's."""
    held = 4 * 72 * 4
    width = 1 << 16
    wide = [torch.nn.Linear(8, width), torch.nn.Linear(width, 8)]
    parameters = sum(p.numel() for layer in wide for p in layer.parameters())
    little = profile.steps(Stub(), Setup(), "none").peak_memory
    assert held <= little < held + 20_000
    much = profile.steps(Stub(*wide), Setup(), "none").peak_memory
    hidden = 4 * width * 4
    assert much - 16 * parameters >= hidden  # the activations, or their gradients
    assert much - 16 * parameters < 8 * hidden + 8 * parameters


def test_objects_are_frozen_for_a_while_or_stay_as_the_process_has_frozen_them():
    gc.unfreeze()
    with new_objects_only():
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0
    gc.freeze()
    with new_objects_only():
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() > 0
