"""swap_norms finds each module's convention by its numbers, and gives the module's results."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rmsnorm.torch
from norm_modules import Gated, Norm
from rmsnorm import native
from rmsnorm.torch import swap_norms

pytestmark = pytest.mark.skipif(bool(native.missing), reason=native.missing or "")


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
    # With casting="llama" x̂ is rounded first: a unit there is up to two in the result (the worst of 400 draws: 1.5).
    units = 8 if dtype == torch.float32 else 2 if "llama" in convention else 1
    different = (ours != theirs).double().mean()
    assert different <= (1 if dtype == torch.float32 else 0.02)
    torch.testing.assert_close(ours, theirs, rtol=units * eps, atol=8 * 1.2e-7)


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


class Listed(Norm):
    """A library that keeps a list of its classes, each with a name of its own."""

    classes = {}  # noqa: RUF012

    def __init_subclass__(cls, *, name, **options):
        super().__init_subclass__(**options)
        if name in Listed.classes:
            raise ValueError(f"{name} is taken")
        Listed.classes[name] = cls

    def forward(self, x):
        return (self.normed(x.float()) * self.weight.float()).type_as(x)


class OfAList(Listed, name="mine"):
    pass


class Slotted(Once):
    __slots__ = ("cache",)


def test_a_list_of_subclasses_does_not_see_the_derived_class():
    norm = OfAList()
    swapped = swap_norms(norm)
    assert isinstance(norm, OfAList)
    assert type(norm) is not OfAList
    assert Listed.classes == {"mine": OfAList}
    swapped.restore()
    assert type(norm) is OfAList


def test_a_class_with_slots_is_served():
    norm, x = Slotted(), torch.randn(5, 24)
    norm.cache, before = 7, norm(x)
    swap_norms(norm)
    assert type(norm) is not Slotted
    torch.testing.assert_close(norm(x), before)
    assert norm.cache == 7
