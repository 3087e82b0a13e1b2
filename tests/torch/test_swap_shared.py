"""swap_norms runs a module's forward some dozens of times: what that writes to stays as it was."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rmsnorm import native
from rmsnorm.torch import swap, swap_norms

pytestmark = pytest.mark.skipif(bool(native.missing), reason=native.missing or "")


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(24))

    def forward(self, x):
        return F.rms_norm(x, (24,), self.weight, 1e-6)


class State:
    """Some other object's: a configuration, a cache, a log."""

    def __init__(self, **attributes):
        vars(self).update(attributes)


class Listed(Plain):
    def forward(self, x):
        self.state.rows.append(x.shape)
        return super().forward(x)


class Counted(Plain):
    def forward(self, x):
        self.state.inner.calls += 1
        return super().forward(x)


@pytest.mark.parametrize(
    ("kind", "state"), [(Listed, State(rows=[])), (Counted, State(inner=State(calls=0)))], ids=["list", "counter"]
)
def test_what_can_be_copied_is(kind, state):
    module = kind()
    module.state = state
    state.self = module  # a cycle
    (row,) = swap_norms(module).rows
    assert row.convention == "rms_norm(weight)"
    assert getattr(state, "rows", []) == []
    assert getattr(state, "inner", State(calls=0)).calls == 0


class WritesElsewhere(Plain):
    def forward(self, x):
        with torch.no_grad():
            self.state.owner.weight.add_(1.0)
        return super().forward(x)


@pytest.mark.parametrize(
    ("owner", "why"),
    [(nn.Linear(3, 3), "it has modules of its own"), (State(weight=torch.ones(3)), "tensors that are no parameters")],
    ids=["module", "object"],
)
def test_what_reaches_the_tensors_of_others_is_not_run(owner, why):
    module, before = WritesElsewhere(), owner.weight.detach().clone()
    module.state = State(owner=owner)
    (row,) = swap_norms(nn.Sequential(module)).rows
    assert why in row.why
    assert torch.equal(owner.weight, before)


def test_modules_of_one_kind_are_probed_once(monkeypatch):
    judged = []
    judge = swap._judge
    monkeypatch.setattr(swap, "_judge", lambda module: judged.append(module) or judge(module))
    model = nn.Sequential(Plain(), Plain(), Plain())
    model[1].register_forward_hook(lambda *_: None)
    assert len(swap_norms(model).rows) == 3
    assert judged == [model[0]]


TABLE, TOTAL = torch.zeros(3), 1000


class WithLock(Plain):
    def __init__(self):
        super().__init__()
        self.state = State(lock=threading.Lock(), calls=1000, rows=[])

    def forward(self, x):
        with self.state.lock:
            self.state.calls += 1
            self.state.rows.append(1)
        return super().forward(x)


class OfTheClass(Plain):
    calls = 1000

    def forward(self, x):
        type(self).calls += 1
        return super().forward(x)


class OfTheModule(Plain):
    def forward(self, x):
        global TOTAL
        TOTAL += 1
        TABLE.add_(1)
        return super().forward(x)


def test_what_cannot_be_copied_is_put_back_and_the_norm_left():
    calls, cache = 1000, {}

    class OfTheFunction(Plain):
        def forward(self, x):
            nonlocal calls
            calls += 1
            cache[calls] = x
            return super().forward(x)

    module = nn.Sequential(WithLock(), OfTheClass(), OfTheModule(), OfTheFunction(), Plain())
    *left, plain = swap_norms(module).rows
    assert plain.convention
    assert [row.why for row in left] == ["its forward writes to what others share with it"] * 4
    state = module[0].state
    assert (state.calls, state.rows, OfTheClass.calls, TOTAL, calls, cache) == (1000, [], 1000, 1000, 1000, {})
    assert not TABLE.any()
