"""swap_norms leaves what no convention reproduces to the module, says why, and lists no module that is no norm."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from norm_modules import Dropped, Gated, Norm
from rmsnorm import native
from rmsnorm.torch import swap_norms

pytestmark = pytest.mark.skipif(bool(native.missing), reason=native.missing or "")


class GatedByTanh(Gated):
    def __init__(self):
        super().__init__(activation=torch.tanh)


class DetachedGated(Gated):
    def forward(self, x, gate):
        return super().forward(x, gate).detach()


class GatedWithoutGradient(Gated):
    def forward(self, x, gate):
        return super().forward(x, gate.detach())


class Clamped(Norm):
    def forward(self, x):
        return super().forward(x).clamp(-8, 8)


class Detached(Norm):
    def normed(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps).detach()


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
            x.neg_()
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
    (Training(), "no convention reproduces its results"),
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
]


@pytest.mark.parametrize(("module", "why"), LEFT, ids=lambda v: v if isinstance(v, str) else type(v).__name__)
def test_left(module, why, request):
    named = type("Foo", (type(module),), {})  # each is listed for its numbers
    module.__class__ = named
    swapped = swap_norms(module)
    request.addfinalizer(swapped.restore)
    (row,) = swapped.rows
    assert row.convention is None
    assert type(module) is named
    assert re.search(why, row.why), row.why


class Same(nn.Module):
    def forward(self, weight):
        return weight * 1


@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm])
def test_torchs_norms_are_listed_whatever_hangs_on_them(norm):
    """One with a module inside was taken for a block, and had no row."""
    plain, parametrized, with_module = norm(24), norm(24), norm(24)
    nn.utils.parametrize.register_parametrization(parametrized, "weight", Same())
    with_module.other = nn.Linear(2, 2)
    model = nn.Sequential(plain, parametrized, with_module)
    swapped = swap_norms(model)
    why = {row.name: row.why for row in swapped.rows if row.convention is None}
    swapped.restore()
    assert why == {"1": "its parameters are parametrized; swap before that is done", "2": "it has modules of its own"}
    swap_norms(model)
    nn.utils.parametrize.register_parametrization(model[0], "weight", Same())
    x = torch.randn(3, 24)
    torch.testing.assert_close(model[0](x), norm(24)(x))


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


class NormalDistributionHead(nn.Linear):
    def forward(self, x):
        return super().forward(x)


class Normalizer(nn.Module):
    def forward(self, x):
        return (x - 3) / 2


class SignNorm(nn.Module):
    def forward(self, x):
        return x.sign()


class SoftmaxNorm(nn.Module):
    def forward(self, x):
        return x.softmax(-1)


class EnormousTable(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2**18))

    def forward(self, x):
        raise AssertionError("it is not run")


class KnowsAModel(Norm):
    def __init__(self):
        super().__init__()
        self.owner = [nn.Linear(512, 512)]

    def forward(self, x):
        raise AssertionError("it is not run")


class BlockNorm(Norm):
    """It is looked at part by part."""

    def __init__(self):
        super().__init__()
        self.act = nn.Identity()


@pytest.mark.parametrize(
    "module",
    [
        NormalDistributionHead(24, 24),
        Normalizer(),
        SignNorm(),
        SoftmaxNorm(),
        DyTNorm(),
        Raises(),
        EnormousTable(),
        KnowsAModel(),
        BlockNorm(),
        nn.Linear(3, 3),
    ],
    ids=lambda m: type(m).__name__,
)
def test_a_name_makes_no_norm(module):
    assert swap_norms(module).rows == []


class ChannelsInFront(Norm):
    def forward(self, x):
        return F.layer_norm(x.permute(0, 2, 3, 1), (24,), self.weight).permute(0, 3, 1, 2)


class AddedNorm(Norm):
    def forward(self, x, residual, bias):
        x = x + residual + bias
        return super().forward(x), x


@pytest.mark.parametrize(
    ("kind", "why"),
    [(Scaled, "eps"), (ChannelsInFront, "it raises RuntimeError"), (AddedNorm, "its forward takes neither")],
)
def test_numbers_make_a_norm(kind, why):
    (row,) = swap_norms(type("Foo", (kind,), {})()).rows
    assert row.convention is None
    assert why in row.why


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
