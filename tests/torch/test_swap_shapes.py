"""swap_norms and the shapes of inputs: a norm is served where its result was compared, and is its own elsewhere."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rmsnorm import native
from rmsnorm.torch import swap_norms

pytestmark = pytest.mark.skipif(bool(native.missing), reason=native.missing or "")
N = 8
SHAPES = [(N,), (2, N), (N, N), (2, 5, N), (2, N, N), (2, 4, 2, N), (2, N, 3, N), (2, 3, N, N), (2, 3, 2, 4, N)]


class PixelNorm(nn.Module):
    """StyleGAN's."""

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-8)


class Gained(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(N))


class ChannelsFirst(Gained):
    def forward(self, x):
        if x.dim() < 3:
            return F.rms_norm(x, (N,), self.weight, 1e-6)
        gain = self.weight.view(1, -1, *[1] * (x.dim() - 2))
        return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6) * gain


class ChannelsFirstIn4d(Gained):
    def forward(self, x):
        y = x.permute(0, 2, 3, 1) if x.dim() == 4 else x
        y = F.rms_norm(y, (N,), self.weight, 1e-6)
        return y.permute(0, 3, 1, 2) if x.dim() == 4 else y


class ByExtent(Gained):
    """Takes the second dimension for the channels where it has their number."""

    def forward(self, x):
        if x.dim() > 2 and x.shape[1] == N:
            return F.rms_norm(x.transpose(1, -1), (N,), self.weight, 1e-6).transpose(1, -1)
        return F.rms_norm(x, (N,), self.weight, 1e-6)


class Transposed(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.transpose(1, -1)).transpose(1, -1) if x.dim() > 1 else super().forward(x)


class Global(Gained):
    """One statistic for all of an example."""

    def forward(self, x):
        dims = tuple(range(1, x.dim())) or (0,)
        return x * torch.rsqrt(x.pow(2).mean(dims, keepdim=True) + 1e-6) * self.weight


class Flat(nn.Module):
    def forward(self, x):
        y = x.flatten(1) if x.dim() > 1 else x
        return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).view_as(x)


class GatedOverMore(Gained):
    def forward(self, x, gate):
        y = x * F.silu(gate)
        dims = tuple(range(2, x.dim())) or (-1,)
        return y * torch.rsqrt(y.pow(2).mean(dims, keepdim=True) + 1e-6) * self.weight


class LongBranch(nn.Module):
    """Too wide for equal extents to be tried."""

    def __init__(self, n):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n))

    def forward(self, x):
        dim = 1 if x.dim() == 3 and x.shape[1] == self.weight.numel() else -1
        return x * torch.rsqrt(x.pow(2).mean(dim, keepdim=True) + 1e-6) * self.weight


MODULES = [PixelNorm, ChannelsFirst, ChannelsFirstIn4d, ByExtent, lambda: Transposed(N), Global, Flat]


def same(module, *inputs):
    """The swapped module's result, or its error, is the module's own."""
    own = type(module)._rmsnorm_original.forward if hasattr(type(module), "_rmsnorm_original") else None
    if own is None:
        return
    try:
        expected = own(module, *inputs)
    except Exception as error:
        with pytest.raises(type(error)):
            module(*inputs)
        return
    torch.testing.assert_close(module(*inputs), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("make", MODULES, ids=lambda m: getattr(m, "__name__", ""))
def test_norms_over_other_dimensions_keep_their_results(make, shape):
    module = make()
    swap_norms(module)
    same(module, torch.randn(shape))


@pytest.mark.parametrize("shape", [(2, N), (2, 3, N), (2, 3, 5, N)], ids=str)
def test_gated_norms_over_other_dimensions_keep_their_results(shape):
    module = GatedOverMore()
    swap_norms(module)
    same(module, torch.randn(shape), torch.randn(shape))


@pytest.mark.parametrize("make", [PixelNorm, Global, Flat, ByExtent], ids=lambda m: m.__name__)
def test_the_reason_names_the_dimensions(make):
    named = type(f"{make.__name__}Norm", (make,), {})
    (row,) = swap_norms(named()).rows
    assert row.why == "its result depends on more than the last dimension"


def test_equal_extents_that_were_not_tried_take_the_modules_own_forward():
    n = 5000
    module = LongBranch(n)
    (row,) = swap_norms(module).rows
    assert row.convention == "rms_norm(weight)"
    same(module, torch.randn(1, n, n))
    same(module, torch.randn(1, 3, n))


@pytest.mark.parametrize("n", [1000, 3000])
def test_a_branch_on_extents_of_a_wide_norm_is_seen(n):
    (row,) = swap_norms(LongBranch(n)).rows
    assert row.why == "its result depends on more than the last dimension"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_usual_rank_of_an_ordinary_norm_is_served(shape, monkeypatch):
    module = nn.RMSNorm(N)
    x = torch.randn(shape)
    expected = module(x)
    swap_norms(module)
    monkeypatch.setattr(nn.RMSNorm, "forward", lambda self, x: pytest.fail("its own forward ran"))
    torch.testing.assert_close(module(x), expected)
