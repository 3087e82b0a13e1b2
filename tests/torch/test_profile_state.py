"""What a step may change, and profile_norms puts back: before each step, and at the end."""

import collections

import numpy as np
import pytest
import torch
from torch import nn

from rmsnorm import native
from rmsnorm.torch import accelerate, profile_norms
from rmsnorm.torch.accelerate import _users

pytestmark = pytest.mark.skipif(bool(native.missing), reason=native.missing or "")
X = torch.randn(3, 64)


class Caching(nn.Module):
    """Grows at each step, like a decoder's cache."""

    def __init__(self):
        super().__init__()
        self.norm = nn.RMSNorm(64)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("keys", torch.zeros(0, 64))
        self.listed, self.queue, self.names, self.array = [], collections.deque(), set(), np.zeros(3)
        self.nested = {"steps": [0]}
        self.seen = lambda: (len(self.listed), len(self.queue), len(self.names), self.array[0], self.nested["steps"][0])

    def forward(self, x):
        self.listed.append(x)
        self.queue.append(1)
        self.names.add(len(self.names))
        self.array += 1
        self.nested["steps"][0] += 1
        self.count += 1
        self.keys = torch.cat([self.keys, x])
        lengths.append((*self.seen(), int(self.count), len(self.keys)))
        return self.norm(x)


lengths: list = []


def test_every_step_starts_from_the_same_state():
    lengths.clear()
    model = Caching()
    keys = model.keys
    profile_norms(model, lambda m: m(X), seconds=0.2)
    assert len(lengths) > 20
    assert set(lengths) == {(1, 1, 1, 1.0, 1, 1, 3)}
    assert model.seen() == (0, 0, 0, 0.0, 0)
    assert model.keys is keys
    assert int(model.count) == 0


def test_a_training_step_never_diverges_by_repetition():
    model = nn.Sequential(nn.Linear(64, 64), nn.RMSNorm(64))
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9), []

    def step(m):
        optimizer.zero_grad()
        loss = (m(X) * 1e3).pow(2).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))

    profile_norms(model, step, rounds=3)
    assert np.isfinite(losses).all()


class Resizing(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("b", torch.zeros(2))
        self.linear, self.norm = nn.Linear(64, 64), nn.RMSNorm(64)

    def forward(self, x):
        self.b.resize_(self.b.numel() + 1)
        with torch.no_grad():
            self.linear.weight.mul_(2)
        return self.norm(self.linear(x))


def test_a_resized_buffer_does_not_keep_the_rest_from_being_restored():
    model, before = Resizing(), torch.get_rng_state()
    weight = model.linear.weight.detach().clone()
    profile_norms(model, lambda m: (m(X), torch.rand(1)), rounds=1)
    assert torch.equal(model.linear.weight, weight)
    assert torch.equal(model.b, torch.zeros(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_parameters_keep_their_memory_and_requires_grad():
    model = nn.Sequential(nn.Linear(64, 64), nn.RMSNorm(64))
    model[0].bias.requires_grad_(False)
    memory = model[0].weight.detach()

    def step(m):
        m[0].weight.data = m[0].weight.data * 2
        m[0].weight.requires_grad_(False)
        m[0].bias.requires_grad_(True)
        m(X).sum().backward()

    profile_norms(model, step, rounds=1)
    assert model[0].weight.data_ptr() == memory.data_ptr()
    assert model[0].weight.requires_grad
    assert not model[0].bias.requires_grad
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("last", [1, 2])
def test_an_interruption_while_accelerate_switches_leaves_nothing_on(monkeypatch, last):
    model, implement, count = nn.RMSNorm(64), torch.library.Library.impl, []

    def interrupted(self, name, *args, **kwargs):
        done = implement(self, name, *args, **kwargs)
        if name in _users:
            count.append(name)
            if len(count) == last:
                raise KeyboardInterrupt
        return done

    monkeypatch.setattr(torch.library.Library, "impl", interrupted)
    with pytest.raises(KeyboardInterrupt):
        profile_norms(model, lambda m: m(X), rounds=1)
    assert not any(_users.values())
    assert not torch._C._dispatch_has_kernel_for_dispatch_key("aten::rms_norm", "CPU")
    with accelerate():
        pass
    assert not torch._C._dispatch_has_kernel_for_dispatch_key("aten::rms_norm", "CPU")


def test_other_norms_are_named():
    model = nn.Sequential(nn.BatchNorm1d(64), nn.RMSNorm(64))
    assert any("1 BatchNorm1d: not counted" in note for note in profile_norms(model, lambda m: m(X), rounds=1).notes)


def test_progress_is_callable():
    with pytest.raises(TypeError, match="progress must be callable or None, got int"):
        profile_norms(nn.RMSNorm(64), lambda m: m(X), progress=3)


def test_a_dictionary_that_makes_its_values_is_kept_as_it_is():
    class Table(dict):
        def __getitem__(self, name):
            raise AssertionError("a value is made")

        items = values = __getitem__

    model = nn.Sequential(nn.LayerNorm(64))
    model.table = Table(a=[1])

    def step(model):
        dict.get(model.table, "a").append(2)
        model.table["b"] = 3
        model(X)

    profile_norms(model, step, rounds=1)
    assert dict.get(model.table, "a") == [1]
    assert list(model.table) == ["a"]
