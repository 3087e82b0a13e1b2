"""What usual results do not show of a norm: another eps by dtype, clamps, NaN, attributes that are not its eps."""

import copy
import threading
from collections import deque

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


def norm(x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Straight(OwnNorm):
    """Rounds where the input has a gradient."""

    def forward(self, x):
        y = norm(x) * self.weight
        return y + (y.round() - y).detach() if x.requires_grad else y


class RoundsInInference(OwnNorm):
    def forward(self, x):
        y = norm(x) * self.weight
        return y.round() if torch.is_inference_mode_enabled() else y


class Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dy):
        return dy.clamp(-10, 10)


class ClippedGradient(OwnNorm):
    def forward(self, x):
        return Clip.apply(norm(x) * self.weight)


class ClampedInput(OwnNorm):
    def forward(self, x):
        return norm(x.clamp(-1e4, 1e4)) * self.weight


class ClampedResult(OwnNorm):
    def forward(self, x):
        return (norm(x) * self.weight).clamp(-1e4, 1e4)


class NoInfinities(OwnNorm):
    def forward(self, x):
        return norm(torch.where(x.isinf(), x.sign() * 1e4, x)) * self.weight


class MarksPadding(OwnNorm):
    def forward(self, x):
        return (norm(x) * self.weight).masked_fill((x == 0).all(-1, True), -1.0)


class SharedScale(OwnNorm):
    def __init__(self):
        super().__init__()
        self.shared = [torch.ones(())]

    def forward(self, x):
        return norm(x) * self.weight * self.shared[0]


@pytest.mark.parametrize(
    "kind",
    [
        Straight,
        RoundsInInference,
        ClippedGradient,
        ClampedInput,
        ClampedResult,
        NoInfinities,
        MarksPadding,
        SharedScale,
    ],
)
def test_what_shows_in_few_inputs_or_modes_alone_is_seen(kind):
    (row,) = swap_norms(type(f"{kind.__name__}Norm", (kind,), {})()).rows
    assert row.why is not None


class AddsUnlessContiguous(OwnNorm):
    def forward(self, x):
        return norm(x if x.is_contiguous() else x + 1) * self.weight


class ByProduct(OwnNorm):
    """The mean by a matrix product, which autocast computes in 16 bits."""

    def forward(self, x):
        mean = torch.matmul(x.pow(2), torch.full((x.shape[-1], 1), 1 / x.shape[-1]))
        return x * torch.rsqrt(mean + 1e-6) * self.weight


class Flattening(OwnNorm):
    """Its results are contiguous."""

    def forward(self, x):
        return (norm(x.reshape(-1, x.shape[-1])) * self.weight).view(x.shape)


LAYOUTS = {
    "transposed": lambda: torch.randn(2, 64, 5).transpose(1, 2),
    "sliced": lambda: torch.randn(2, 5, 128)[..., :64],
    "expanded": lambda: torch.randn(2, 1, 64).expand(2, 5, 64),
    "contiguous": lambda: torch.randn(2, 5, 64),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "make", [AddsUnlessContiguous, Flattening, OwnNorm, lambda: nn.LayerNorm(64), lambda: nn.RMSNorm(64)]
)
def test_values_and_strides_of_any_layout_are_the_modules(make, layout):
    module, x = make(), LAYOUTS[layout]()
    expected = module(x)
    (row,) = swap_norms(module).rows
    assert row.why is None
    y = module(x)
    assert y.stride() == expected.stride()
    torch.testing.assert_close(y, expected)


def test_autocast_is_the_modules_where_it_changes_results():
    module, x = ByProduct(), torch.randn(3, 64)
    with torch.autocast("cpu", torch.bfloat16):
        expected = module(x)
        (row,) = swap_norms(module).rows
        assert row.why is None
        assert torch.equal(module(x), expected)


def test_strided_nested_tensors_are_the_modules():
    module, x = nn.LayerNorm(64), torch.nested.nested_tensor([torch.randn(2, 64), torch.randn(3, 64)])
    expected = module(x)
    swap_norms(module)
    for y, z in zip(module(x).unbind(), expected.unbind(), strict=True):
        assert torch.equal(y, z)


class PrivateEps(nn.Module):
    def __init__(self):
        super().__init__()
        self._e = 1  # an integer
        self.weight = nn.Parameter(torch.randn(64))

    @property
    def eps(self):
        return self._e

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight, float(self.eps))


@pytest.mark.parametrize("eps", [4, 0.5, -1e-3])
def test_eps_is_read_where_the_module_reads_it(eps):
    module, x = PrivateEps(), torch.randn(3, 64)
    (row,) = swap_norms(module).rows
    assert row.why is None
    module._e = eps
    torch.testing.assert_close(module(x), PrivateEps.forward(module, x), equal_nan=True)


def test_copies_follow_the_modules_own_state():
    class Locked(OwnNorm):
        def __init__(self):
            super().__init__()
            self.lock = threading.Lock()

        def __getstate__(self):
            return {k: v for k, v in vars(self).items() if k != "lock"}

        def __setstate__(self, state):
            super().__setstate__(state)
            self.lock = threading.Lock()

    module, x = Locked(), torch.randn(3, 64)
    swap_norms(module)
    twin = copy.deepcopy(module)
    assert type(twin) is type(module)
    assert twin.lock is not module.lock
    assert torch.equal(twin(x), module(x))


def test_what_a_forward_writes_into_containers_stays_with_the_shadow():
    class Counting(OwnNorm):
        def __init__(self):
            super().__init__()
            self.calls = {"all": [deque()]}

        def forward(self, x):
            self.calls["all"][0].append(1)
            return norm(x) * self.weight

    module = Counting()
    swap_norms(module)
    assert not module.calls["all"][0]
