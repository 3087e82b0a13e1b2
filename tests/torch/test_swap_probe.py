"""What usual results do not show of a norm: another eps by dtype, clamps, NaN, attributes that are not its eps."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rmsnorm import native
from rmsnorm.torch import swap_norms

pytestmark = pytest.mark.skipif(bool(native.missing), reason=native.missing or "")


class OwnNorm(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.eps = 1e-6
        self.weight = nn.Parameter(torch.randn(shape or (64,)))

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], None, self.eps) * self.weight


class EpsByDtype(OwnNorm):
    def forward(self, x):
        eps = 1e-6 if x.dtype == torch.float32 else 1e-5
        f = x.float()
        return (f * torch.rsqrt(f.square().mean(-1, keepdim=True) + eps) * self.weight.float()).to(x.dtype)


class ClampedInHalf(OwnNorm):
    def forward(self, x):
        f = x.float()
        y = f * torch.rsqrt(f.square().mean(-1, keepdim=True) + 1e-6) * self.weight.float()
        return (y.clamp(-60, 60) if x.dtype == torch.float16 else y).to(x.dtype)


NAMES = {torch.float32: "f32/f32", torch.bfloat16: "bf16/bf16", torch.float16: "f16/f16"}


@pytest.mark.parametrize(
    ("kind", "left"),
    [(EpsByDtype, {torch.bfloat16, torch.float16}), (ClampedInHalf, {torch.float16})],
    ids=["eps", "clamp"],
)
@pytest.mark.parametrize("dtype", NAMES, ids=str)
def test_16_bits_are_probed_with_small_rows_and_outliers(kind, left, dtype):
    module, stock = kind().to(dtype), kind().to(dtype)
    stock.load_state_dict(module.state_dict())
    (row,) = swap_norms(module).rows
    served = {t for t in NAMES if NAMES[t] in row.dtypes.split()}
    assert served.isdisjoint(left)
    assert torch.float32 in served
    x = (1e-3 * torch.randn(5, 64)).to(dtype)
    torch.testing.assert_close(
        module(x), stock(x), rtol=0 if dtype in left else None, atol=0 if dtype in left else None
    )


class ClampedBareNorm(nn.Module):
    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], None, 1e-6).clamp(-50, 50)


class NoNaNNorm(nn.Module):
    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], None, 1e-6).nan_to_num()


@pytest.mark.parametrize("module", [ClampedBareNorm(), NoNaNNorm()], ids=lambda m: type(m).__name__)
def test_clamps_and_lost_nans_are_seen(module):
    (row,) = swap_norms(module).rows
    assert row.why == "no convention reproduces its results"


def test_eps_is_the_attribute_that_changes_the_result():
    class Named(OwnNorm):
        def __init__(self):
            super().__init__()
            vars(self)["a_tolerance"], vars(self)["eps"] = 1e-6, 1e-6
            vars(self)["eps"] = vars(self).pop("eps")  # after the other

    module, x = Named(), 1e-3 * torch.randn(3, 64)
    swap_norms(module)
    module.a_tolerance = 1.0
    torch.testing.assert_close(module(x), Named.forward(module, x))
    module.eps = 1.0
    torch.testing.assert_close(module(x), Named.forward(module, x))


def test_an_attribute_of_the_same_value_is_not_the_eps_of_a_number_in_the_code():
    class Fixed(OwnNorm):
        def forward(self, x):
            return F.rms_norm(x, x.shape[-1:], None, 1e-6) * self.weight

    module, x = Fixed(), 1e-3 * torch.randn(3, 64)
    swap_norms(module)
    module.eps = 1.0
    torch.testing.assert_close(module(x), Fixed.forward(module, x))


@pytest.mark.parametrize("shape", [(1, 64), (1, 1, 64)], ids=str)
def test_a_gain_that_is_broadcast_is_named(shape):
    (row,) = swap_norms(OwnNorm(*shape)).rows
    assert row.why == f"weight has the shape {shape}; one for the last dimension, or for heads, is taken"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_default_dtype_does_not_matter(dtype):
    module = nn.RMSNorm(64)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        (row,) = swap_norms(module).rows
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(before)
    assert row.convention == "rms_norm(weight)"
