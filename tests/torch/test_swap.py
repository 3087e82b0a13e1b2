"""What swap_norms does to a model: the module stays what it was, the probe leaves no trace, restore() undoes all."""

import copy
import io
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from norm_modules import Dropped, Gated, Norm
from rmsnorm import native
from rmsnorm.torch import swap_norms

pytestmark = pytest.mark.skipif(bool(native.missing), reason=native.missing or "")


def legacy_state():
    return np.random.get_state()[1].tolist()  # noqa: NPY002


@pytest.fixture
def model():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(24, 24), Norm(), nn.Linear(24, 24), nn.LayerNorm(24), Norm(eps=1e-3), Dropped())


def test_the_module_stays_what_it_was(model):
    theirs = model.eval()(torch.ones(2, 24))
    norm, state, attributes = model[1], list(model.state_dict()), dict(vars(model[1]))
    swapped = swap_norms(model)
    assert repr(model).count("Norm") == 3
    assert model[1] is norm
    assert isinstance(norm, Norm)
    assert (type(norm).__name__, type(norm).__module__) == ("Norm", "norm_modules")
    assert vars(norm) == attributes
    assert list(model.state_dict()) == state
    assert repr(swapped) == "<swap_norms: 3 swapped, 1 left; print it for the table>"
    torch.testing.assert_close(model(torch.ones(2, 24)), theirs)
    swapped.restore()
    swapped.restore()
    assert type(norm) is Norm
    assert torch.equal(model(torch.ones(2, 24)), theirs)


def calls(module, monkeypatch):
    """How often the module's own forward runs."""
    count = []
    forward = type(module).__mro__[1].forward if hasattr(type(module), "_rmsnorm_original") else type(module).forward
    original = type(module)._rmsnorm_original
    monkeypatch.setattr(original, "forward", lambda self, *a, **k: (count.append(1), forward(self, *a, **k))[1])
    return count


def test_what_was_not_verified_takes_the_modules_own_forward(monkeypatch):
    class Optional(Norm):
        def forward(self, x, gate=None):
            return super().forward(x) if gate is None else super().forward(x) * gate

    module, x = Optional(), torch.randn(3, 24)
    gated = module(x, x)
    swap_norms(module)
    count = calls(module, monkeypatch)
    module(x)
    assert not count
    assert torch.equal(module(x, x), gated)
    assert torch.equal(module(x, gate=x), gated)
    module(x.double())
    module(x=x)
    assert len(count) == 4
    with pytest.raises(RuntimeError):
        module(torch.randn(3, 23))
    assert len(count) == 5
    torch.func.functional_call(module, {"weight": torch.ones(24)}, (x,))
    assert len(count) == 5


def test_eps_is_read_at_each_call():
    module, x = Norm(), torch.randn(3, 24)
    swap_norms(module)
    module.eps = 10.0
    torch.testing.assert_close(module(x), Norm.forward(module, x))


def test_copies_and_pickles(model):
    swapped = swap_norms(model)
    twin = copy.deepcopy(model)
    assert type(twin[1]) is type(model[1])
    assert twin[1].weight is not model[1].weight
    for protocol in (2, 4):
        file = io.BytesIO()
        torch.save(model, file, pickle_protocol=protocol)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        assert type(loaded[1]) is Norm
        assert type(loaded[3]) is nn.LayerNorm
        assert torch.equal(loaded[1].weight, model[1].weight)
    assert type(copy.copy(model[1])) is Norm
    swapped.restore()


def test_hooks_run_and_are_not_run_by_the_probe():
    seen = []
    module = Norm()
    module.register_forward_hook(lambda *args: seen.append("after"))
    module.register_forward_pre_hook(lambda *args: seen.append("before"))
    swap_norms(module)
    assert not seen
    module(torch.randn(2, 24))
    assert seen == ["before", "after"]


def test_the_probe_leaves_no_trace():
    class Counting(Norm):
        def __init__(self):
            super().__init__()
            self.list, self.dict, self.calls = [], {}, 0

        def forward(self, x):
            self.calls += 1
            self.list.append(1)
            self.dict[self.calls] = 1
            random.random(), np.random.rand()  # noqa: NPY002  as foreign code does
            return super().forward(x)

    module = Counting()
    module.weight.grad = torch.ones(24)
    before, weight = dict(vars(module)), module.weight.clone()
    states = random.getstate(), legacy_state(), torch.get_rng_state()
    swap_norms(module)
    assert vars(module) == before
    assert (module.list, module.dict, module.calls) == ([], {}, 0)
    assert torch.equal(module.weight, weight)
    assert torch.equal(module.weight.grad, torch.ones(24))
    assert states[0] == random.getstate()
    assert states[1] == legacy_state()
    assert torch.equal(states[2], torch.get_rng_state())


@pytest.mark.parametrize(
    "mode",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.device("meta"),
        FakeTensorMode,
    ],
)
def test_modes_of_the_caller_do_not_matter(mode):
    module = Norm()
    with mode():
        assert swap_norms(module).rows[0].convention == "rms_norm(weight, casting=llama)"


def test_a_model_on_meta_is_judged_and_loaded_later():
    with torch.device("meta"):
        module = Norm()
    assert swap_norms(module).rows[0].why is None
    module = module.to_empty(device="cpu")
    with torch.no_grad():
        module.weight.fill_(2.0)
    x = torch.randn(3, 24)
    torch.testing.assert_close(module(x), Norm.forward(module, x))


def test_gradients():
    module, x = Norm(), torch.randn(5, 24, requires_grad=True)
    dy = torch.randn(5, 24)
    theirs = torch.autograd.grad(module(x), [x, module.weight], dy)
    swap_norms(module)
    ours = torch.autograd.grad(module(x), [x, module.weight], dy)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_compiled_and_exported_graphs_hold_the_modules_own_operations(model):
    model = model[:5]
    x = torch.randn(3, 24)
    theirs = model(x)
    swap_norms(model)
    names = {str(n.target) for n in torch.export.export(model, (x,)).graph.nodes}
    assert not any("rmsnorm" in name for name in names)
    assert "aten.rsqrt.default" in names
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), theirs)


@pytest.mark.parametrize("make", [Norm, Gated], ids=["plain", "gated"])
def test_the_first_call_may_be_a_compiled_one(make):
    """Nothing of a convention is in the graph, of which Dynamo before Python 3.12 does not trace cached properties."""
    module, inputs = make(), [torch.randn(3, 24) for _ in range(1 if make is Norm else 2)]
    theirs = module(*inputs)
    assert swap_norms(module).rows[0].why is None
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    assert torch.equal(compiled(*inputs), theirs)  # its own operations


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_scripting_needs_the_module_restored():
    model = nn.Sequential(nn.Linear(24, 24), nn.Sequential(nn.RMSNorm(24), nn.LayerNorm(24)))
    swapped, x = swap_norms(model), torch.randn(3, 24)
    for module in (model, model[1][1]):
        with pytest.raises(NotImplementedError, match=r"swap_norms serves it; call restore\(\) first"):
            torch.jit.script(module)
    swapped.restore()
    assert torch.equal(torch.jit.script(model)(x), model(x))


def test_arguments(model):
    with swap_norms(model, layer_norms=False) as swapped:
        assert type(model[3]) is nn.LayerNorm
        assert [r.why for r in swapped.rows if r.name == "3"] == ["it is a LayerNorm, and layer_norms=False"]
    with swap_norms(model, filter=lambda name, module: name == "4") as swapped:
        assert [row.name for row in swapped.rows] == ["4"]
        assert type(model[1]) is Norm
    for wrong, message in [
        ({"layer_norms": 1}, "layer_norms must be a bool, got int"),
        ({"filter": "norm"}, "filter must be callable or None, got str"),
    ]:
        with pytest.raises(TypeError, match=message):
            swap_norms(model, **wrong)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got list"):
        swap_norms([model])


def test_twice_and_replaced_forwards(model):
    first = swap_norms(model)
    assert [row.why for row in swap_norms(model).rows][:3] == ["it is swapped already"] * 3
    first.restore()
    model[1].forward = lambda x: x
    assert "its forward was replaced on the instance" in swap_norms(model).rows[0].why


def test_restore_names_what_was_changed_since(model):
    swapped = swap_norms(model)
    nn.utils.parametrize.register_parametrization(model[1], "weight", nn.Identity())
    with pytest.raises(RuntimeError, match=r"restore.. must find the classes that swap_norms.. set"):
        swapped.restore()
    assert type(model[3]) is nn.LayerNorm
    nn.utils.parametrize.remove_parametrizations(model[1], "weight")
    swapped.restore()
    assert type(model[1]) is Norm


def test_the_table(model):
    lines = str(swap_norms(model)).splitlines()
    assert " ".join(lines[0].split()) == "module class served by eps input/gain, or why it is left"
    assert lines[1].split()[:4] == ["1", "Norm", "rms_norm(weight,", "casting=llama)"]
    assert "1e-06" in lines[1]
    assert "f32/f32 bf16/bf16" in lines[1]
    assert lines[-1] == "3 swapped, 1 left"
    assert "left" in lines[4]
