"""profile_norms leaves no trace: after a step, an error or an interruption all is what it was."""

import copy
import importlib
import random
import time

import numpy as np
import pytest
import torch
from torch import nn

from profiled import Block, Norm, X
from rmsnorm import native
from rmsnorm.torch import profile_norms
from rmsnorm.torch.profile import kept, profiler

optimizers = importlib.import_module("torch.optim.optimizer")
pytestmark = pytest.mark.skipif(bool(native.missing), reason=native.missing or "")


@pytest.fixture
def short(monkeypatch):
    """One step a sample."""
    monkeypatch.setattr(profiler, "SAMPLE_NS", 1.0)
    monkeypatch.setattr(profiler, "LEAD_NS", 0.0)


def state(model, optimizer):
    """All that must not change, with the identity of what must stay the same object."""
    return {
        "state_dict": {name: t.clone() for name, t in model.state_dict().items()},
        "tensors": {name: id(t) for name, t in (*model.named_parameters(), *model.named_buffers())},
        "classes": [type(m) for m in model.modules()],
        "attributes": [{name: id(value) for name, value in vars(m).items()} for m in model.modules()],
        "training": [m.training for m in model.modules()],
        "hooks": [[*m._forward_hooks] for m in model.modules()],
        "cache": [*model[0].cache],
        "grads": [(id(p.grad), None if p.grad is None else p.grad.clone()) for p in model.parameters()],
        "optimizer": copy.deepcopy(optimizer.state_dict()),
        "random": [torch.get_rng_state(), random.getstate(), np.random.get_state()[1]],  # noqa: NPY002
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("started", [False, True], ids=["fresh optimizer", "started optimizer"])
@pytest.mark.parametrize(
    ("error", "at"), [(None, 0), *((kind, at) for kind in (RuntimeError, KeyboardInterrupt) for at in (1, 2, 20))]
)
def test_nothing_is_changed(error, at, started, short):
    torch.manual_seed(0)
    model = nn.Sequential(Block(), nn.RMSNorm(16))
    model[0].batch_norm.eval()
    model[0].first.register_forward_hook(lambda module, given, y: y * 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    if started:
        model(X).square().sum().backward()
        optimizer.step()
    calls = []

    def step(model):
        calls.append(len(calls))
        random.random(), np.random.rand()  # noqa: NPY002
        model.train(len(calls) % 2 == 0)
        model[0].batch_norm.train()
        optimizer.zero_grad()
        model(X).square().sum().backward()
        if error and len(calls) >= at:
            raise error("stop")
        optimizer.step()
        optimizer.param_groups[0]["lr"] *= 0.9

    before = state(model, optimizer)
    if error:
        with pytest.raises(error, match="stop"):
            profile_norms(model, step, rounds=2)
    else:
        profile_norms(model, step, rounds=2)
    after = state(model, optimizer)
    assert {name for name in before if not same(before[name], after[name])} == set()
    assert not torch._C._dispatch_has_kernel_for_dispatch_key("aten::rms_norm", "CPU")
    assert not optimizers._global_optimizer_pre_hooks


def test_an_interruption_waits_until_everything_is_put_back(monkeypatch):
    model = nn.Sequential(Norm(), nn.Linear(16, 16))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    restore, pressed = kept.Snapshot.restore, []

    def interrupted(self):
        if not pressed:
            pressed.append(True)
            raise KeyboardInterrupt
        restore(self)

    monkeypatch.setattr(kept.Snapshot, "restore", interrupted)

    def step(model):
        model(X)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(1)

    with pytest.raises(KeyboardInterrupt):
        profile_norms(model, step, rounds=1)
    assert same(before, dict(model.state_dict()))


def test_every_step_starts_from_the_same_numbers(short):
    model = nn.Sequential(nn.Linear(16, 16), Norm(), nn.BatchNorm1d(16))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    starts = []

    def step(model):
        time.sleep(5e-4)  # longer than what is repeated within a sample
        moments = [s["momentum_buffer"].sum().item() for s in optimizer.state.values()]
        tensors = [t.double().sum().item() for t in (*model.parameters(), *model.buffers())]
        starts.append((torch.rand(()).item(), tuple(tensors), tuple(moments)))
        optimizer.zero_grad()
        model(X).square().sum().backward()
        optimizer.step()

    profile_norms(model, step, rounds=3)
    assert len(starts) > 10
    assert starts[0][:2] == starts[1][:2]
    assert len(set(starts[1:])) == 1  # the first one made the moments
