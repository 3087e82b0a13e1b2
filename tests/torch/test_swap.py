"""swap_norms judges modules by their numbers, serves what it verified, and leaves everything else alone."""

import copy
import io
import random
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import rmsnorm.torch
from rmsnorm import native
from rmsnorm.torch import swap_norms

pytestmark = pytest.mark.skipif(bool(native.missing), reason=native.missing or "")


class Norm(nn.Module):
    """x / RMS(x) · gain; what follows changes one thing of it."""

    def __init__(self, n=24, eps=1e-6, name="weight"):
        super().__init__()
        self.eps, self.name = eps, name
        self.register_parameter(name, nn.Parameter(torch.randn(n)))

    def forward(self, x):
        return self.normed(x.float()).type_as(x) * getattr(self, self.name)

    def normed(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


# ---- what is served ----


class Once(Norm):
    def forward(self, x):
        return (self.normed(x.float()) * self.weight.float()).type_as(x)


class ZeroCentered(Norm):
    def forward(self, x):
        return (self.normed(x.float()) * (1 + self.weight.float())).type_as(x)


class RoundedGain(Norm):
    def forward(self, x):
        return (self.normed(x.float()) * (1 + self.weight).float()).type_as(x)


class HardCodedEps(Norm):
    def normed(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 3e-5)


class Biased(Norm):
    def __init__(self):
        super().__init__(name="g")
        self.a = nn.Parameter(torch.randn(24))  # sorts before the gain

    def forward(self, x):
        return (self.normed(x.float()) * self.g.float() + self.a.float()).type_as(x)


class Partial(Norm):
    def forward(self, x):
        f = x.float()
        return (f * torch.rsqrt(f[..., :7].square().mean(-1, keepdim=True) + self.eps) * self.weight).type_as(x)


class Root(Norm):
    """LitGPT's and many others' form."""

    def forward(self, x):
        f = x.float()
        return (f / (f.pow(2).mean(-1, keepdim=True) + self.eps).sqrt() * self.weight.float()).to(x.dtype)


class Bare(nn.Module):
    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)


class Heads(Norm):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 8))


class OwnLayerNorm(Norm):
    def normed(self, x):
        x = x - x.mean(-1, keepdim=True)
        return super().normed(x)


class OnePlusLayerNorm(nn.LayerNorm):
    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, self.weight + 1, self.bias, self.eps)


SERVED = [
    (nn.RMSNorm(24), "rms_norm(weight)"),
    (nn.RMSNorm(24, eps=1e-5), "rms_norm(weight)"),
    (nn.RMSNorm(24, elementwise_affine=False), "rms_norm()"),
    (nn.RMSNorm((4, 6)), "rms_norm(weight)"),
    (nn.LayerNorm(24), "layer_norm(weight, bias)"),
    (nn.LayerNorm(24, bias=False), "layer_norm(weight)"),
    (nn.LayerNorm(24, elementwise_affine=False, eps=1e-12), "layer_norm()"),
    (nn.LayerNorm((4, 6)), "layer_norm(weight, bias)"),
    (rmsnorm.torch.RMSNorm(24), "rms_norm(weight)"),
    (Norm(), "rms_norm(weight, casting=llama)"),
    (Norm(name="scale"), "rms_norm(weight, casting=llama)"),
    (Norm(eps=0.0), "rms_norm(weight, casting=llama)"),
    (Norm(n=2), "rms_norm(weight, casting=llama)"),
    (Norm(n=1000), "rms_norm(weight, casting=llama)"),
    (Once(), "rms_norm(weight)"),
    (ZeroCentered(), "rms_norm(1 + weight)"),
    (RoundedGain(), "rms_norm((1 + weight))"),
    (HardCodedEps(), "rms_norm(weight, casting=llama)"),
    (Biased(), "rms_norm(weight, bias)"),
    (Partial(), "rms_norm(weight, p=0.2917)"),
    (Root(), "rms_norm(weight)"),
    (Bare(), "rms_norm()"),
    (Heads(), "rms_norm(weight, casting=llama)"),
    (OwnLayerNorm(), "layer_norm(weight)"),
    (OnePlusLayerNorm(24), "layer_norm((1 + weight), bias)"),
]


def rows_for(module, dtype=torch.float32):
    shape = getattr(module, "normalized_shape", None) or next((p.shape for p in module.parameters()), (24,))
    return torch.randn(7, *shape, generator=torch.Generator().manual_seed(5)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(("module", "convention"), SERVED, ids=lambda v: v if isinstance(v, str) else type(v).__name__)
def test_served(module, convention, dtype):
    module = copy.deepcopy(module).to(dtype)
    x = rows_for(module, dtype)
    theirs = module(x)
    with swap_norms(module) as swapped:
        assert [(row.name, row.convention, row.why) for row in swapped.rows] == [("", convention, None)]
        ours = module(x)
        assert type(module) is not swapped.rows[0].cls
    assert ours.dtype == theirs.dtype
    if dtype == torch.float64:  # was not verified
        assert torch.equal(ours, theirs)
    eps = torch.finfo(dtype).eps
    different = (ours != theirs).double().mean()
    assert different <= (1 if dtype == torch.float32 else 0.02)
    torch.testing.assert_close(ours, theirs, rtol=eps * (8 if dtype == torch.float32 else 1), atol=8 * 1.2e-7)


class Gated(Norm):
    """Every order that transformers has: of the gate and the norm, of rounding and the gain."""

    def __init__(self, first=True, groups=1, activation=F.silu, llama=True):
        super().__init__()
        self.first, self.groups, self.activation, self.llama = first, groups, activation, llama

    def forward(self, x, gate):
        gate = self.activation(gate.float())
        f = x.float() if self.first else x.float() * gate
        f = self.normed(f.unflatten(-1, (self.groups, -1))).flatten(-2)
        f = self.weight * f.to(x.dtype) if self.llama else self.weight.float() * f
        return (f * gate).to(x.dtype) if self.first else f if self.llama else f.to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("llama", [True, False])
@pytest.mark.parametrize("activation", [F.silu, torch.sigmoid], ids=["silu", "sigmoid"])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("first", [True, False])
def test_gated(first, groups, activation, llama, dtype):
    module = Gated(first, groups, activation, llama).to(dtype)
    x, gate = rows_for(module, dtype), 3 * rows_for(module, dtype).flip(0)
    parts = ["norm_before_gate"] * first + ["groups=4"] * (groups > 1) + ["sigmoid"] * (activation is not F.silu)
    theirs = module(x, gate)
    with swap_norms(module) as swapped:
        parts += ["casting=llama"] * llama
        assert swapped.rows[0].convention == f"rms_norm_gated({', '.join(['weight', *parts])})"
        assert swapped.rows[0].dtypes.split()[:2] == ["f32/f32", "bf16/bf16"]
        ours = module(x, gate)
        # Other gates, and calls by keyword, take the module's own forward.
        assert torch.equal(module(x, gate=gate), theirs)
        assert torch.equal(module(x, gate[:1]), Gated.forward(module, x, gate[:1]))
    assert ours.dtype == theirs.dtype
    if dtype == torch.float64:  # was not verified
        assert torch.equal(ours, theirs)
    eps = torch.finfo(dtype).eps
    assert (ours != theirs).double().mean() <= (1 if dtype == torch.float32 else 0.02)
    torch.testing.assert_close(ours, theirs, rtol=eps * (8 if dtype == torch.float32 else 1), atol=1e-9)


class GatedByTanh(Gated):
    def __init__(self):
        super().__init__(activation=torch.tanh)


class DetachedGated(Gated):
    def forward(self, x, gate):
        return super().forward(x, gate).detach()


class GatedWithoutGradient(Gated):
    def forward(self, x, gate):
        return super().forward(x, gate.detach())


# ---- what is left ----


class Clamped(Norm):
    def forward(self, x):
        return super().forward(x).clamp(-8, 8)


class Detached(Norm):
    def normed(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps).detach()


class Dropped(Norm):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.5, self.training)


class Noisy(Norm):
    def forward(self, x):
        return super().forward(x) + 0 * torch.rand(1).to(x)


class Scaled(Norm):
    def forward(self, x):
        return super().forward(x) * x.shape[-1] ** 0.5


class OutsideTheRoot(Norm):
    def normed(self, x):
        return x / (x.square().mean(-1, keepdim=True).sqrt() + 1e-3)


class LengthDependent(nn.Module):
    def forward(self, x):
        return x * torch.rsqrt(x.square().sum(-1, keepdim=True) / 64 + 1e-5)


class Normalize(Norm):
    def forward(self, x):
        return F.normalize(x, dim=-1) * x.shape[-1] ** 0.5 * self.weight


class OtherAxis(Norm):
    def normed(self, x):
        return x * torch.rsqrt(x.square().mean(0, keepdim=True) + self.eps)


class FrozenGain(Norm):
    def forward(self, x):
        return self.normed(x) * self.weight.detach()


class InPlace(Norm):
    def forward(self, x):
        with torch.no_grad():
            x.mul_(1.0).add_(1.0)
        return super().forward(x)


class Two(Norm):
    def forward(self, x):
        return super().forward(x), x


class Raises(Norm):
    def forward(self, x):
        raise RuntimeError("not here\nand more")


class Training(Norm):
    def forward(self, x):
        return super().forward(x) * (2 if self.training else 1)


class Shifted(Norm):
    def forward(self, x):
        return super().forward(x) + (1 if self.training else 0)


class Constant(Norm):
    def forward(self, x):
        return super().forward(x).detach()


class DyTNorm(Norm):
    def forward(self, x):
        return torch.tanh(x) * self.weight


class WithBuffer(Norm):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))


class WithChild(Norm):
    def __init__(self):
        super().__init__()
        self.act = nn.Identity()


class WithTensor(Norm):
    def __init__(self):
        super().__init__()
        self.other = torch.ones(24)


class TwoInputs(Norm):
    def forward(self, x, y):
        return super().forward(x + y)


class ThreeInputs(Norm):
    def forward(self, x, y, z):
        return super().forward(x + y + z)


LEFT = [
    (Clamped(), "no convention reproduces its results"),
    (Detached(), "no convention reproduces its results"),
    (Dropped(), "it draws random numbers|no convention"),
    (Noisy(), "it draws random numbers"),
    (Scaled(), "no convention reproduces its results|eps"),
    (OutsideTheRoot(), "eps|no convention"),
    (LengthDependent(), "no convention|eps"),
    (Normalize(), "no convention|eps"),
    (OtherAxis(), "no convention|eps"),
    (FrozenGain(), "no convention"),
    (InPlace(), "it writes into its input"),
    (Two(), "it returns a tuple, not one tensor"),
    (Raises(), "it raises RuntimeError: not here$"),
    (Training(), "no convention reproduces its results"),
    (DyTNorm(), "√eps|no convention"),
    (WithBuffer(), "it has buffers"),
    (WithTensor(), "it has tensors that are no parameters"),
    (Normalize(n=25), "no convention"),  # reads as eps = 4e-26
    (Shifted(), "no convention reproduces its results"),
    (Constant(), "no convention reproduces its results"),
    (DetachedGated(), "no convention with a gate reproduces its results"),
    (GatedByTanh(), "no convention with a gate reproduces its results"),
    (GatedWithoutGradient(), "no convention with a gate reproduces its results"),
    (TwoInputs(), "no convention with a gate reproduces its results"),
    (ThreeInputs(), "its forward takes neither an input alone nor an input and a gate"),
    (Norm(n=1), "weight has the shape .1,., which is no gain of a norm"),
]


@pytest.mark.parametrize(("module", "why"), LEFT, ids=lambda v: v if isinstance(v, str) else type(v).__name__)
def test_left(module, why, request):
    named = type(f"{type(module).__name__}Norm", (type(module),), {})  # so that each is listed
    module.__class__ = named
    swapped = swap_norms(module)
    request.addfinalizer(swapped.restore)
    (row,) = swapped.rows
    assert row.convention is None
    assert type(module) is named
    assert re.search(why, row.why), row.why


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm1d(24),
        nn.GroupNorm(3, 24),
        nn.GELU(),
        nn.Linear(24, 24),
        nn.Embedding(8, 24),
        nn.Dropout(),
        nn.PReLU(24),
    ],
    ids=lambda m: type(m).__name__,
)
def test_torchs_other_modules_are_no_norms(module):
    assert swap_norms(module).rows == []


def test_what_is_no_norm_by_name_or_numbers_is_not_listed():
    class Activation(nn.Module):
        def forward(self, x):
            return x * torch.sigmoid(x)

    class Standardise(Scaled):  # by its numbers
        pass

    model = nn.ModuleDict({"a": Activation(), "b": Standardise(), "c": nn.Linear(3, 3)})
    assert [(row.name, row.convention) for row in swap_norms(model).rows] == [("b", None)]


def test_pairs_of_dtypes_that_differ_are_left_to_the_module():
    class RarelyWrong(Norm):
        def forward(self, x):
            y = super().forward(x)
            return torch.where(x > 3, y * 1.05, y) if x.dtype == torch.bfloat16 else y  # 0.1 % of the elements

    class NoHalf(Norm):
        def forward(self, x):
            if x.dtype == torch.float16:
                raise TypeError
            return super().forward(x)

    assert swap_norms(RarelyWrong()).rows[0].dtypes == "f32/f32 f16/f16 f16/f32 f32/bf16"
    assert swap_norms(NoHalf()).rows[0].dtypes == "f32/f32 bf16/bf16 bf16/f32 f32/bf16"


# ---- in place ----


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
    assert (type(norm).__name__, type(norm).__module__) == ("Norm", __name__)
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
