"""k = ⌈n·p⌉ taken exactly, and what is said to those who call wrongly."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rmsnorm.spec import norm_spec, partial_count
from rmsnorm.torch import LayerNorm, RMSNorm, add_rms_norm, layer_norm, rms_norm


@pytest.mark.parametrize(
    ("n", "p", "k"),
    [
        (30, 0.1, 3),  # math.ceil(0.1 * 30) is 4
        (9, 5 / 9, 5),
        (10, 1.0, 10),
        (10, 1, 10),
        (1, 1e-9, 1),
        (5120, 5e-324, 1),
        (1024, 0.0625, 64),
        (1025, 0.0625, 65),
        (100, 0.07, 7),  # 0.07 * 100 is 7.000000000000001
        (10, math.nextafter(0.5, 1), 6),
        (10, math.nextafter(0.5, 0), 5),
        (10, math.nextafter(1, 0), 10),
        (3, 1 / 3, 1),
        (2**40, 0.1, -(-(2**40) // 10)),
        (30, np.float64(0.1), 3),
    ],
)
def test_partial_count(n, p, k):
    found = partial_count(n, p)
    assert found == k
    assert type(found) is int


@given(n=st.integers(1, 2000), data=st.data())
def test_partial_count_of_quotients_and_decimals(n, data):
    j = data.draw(st.integers(1, n))
    assert partial_count(n, j / n) == j
    percent = data.draw(st.integers(1, 100))
    assert partial_count(n, percent / 100) == math.ceil(Fraction(percent, 100) * n)


@given(n=st.integers(1, 10**6), p=st.floats(0, 1, exclude_min=True))
def test_partial_count_stays_in_range_and_near(n, p):
    k = partial_count(n, p)
    assert 1 <= k <= n
    exact = Fraction(p) * n
    assert abs(k - math.ceil(exact)) <= 1
    assert abs(k - exact) < 1 + Fraction(1, 10**9)


X, W = torch.ones(2, 3, 8), torch.ones(8)
P_RANGE = "p is the fraction of elements whose RMS is taken: 0 < p <= 1, got {}"
EPS_RANGE = "eps is inside the root and must be finite and not negative, got {}"
FLOATING = "must be of a floating dtype (float16, bfloat16, float32, float64), got {}"

SHAPE = "must have the shape normalized_shape = (8,), or (3, 8) with one for each head, got {}"

WRONG_EVERYWHERE = [  # keyword arguments of rms_norm(X, (8,), …), and the message
    *(({"p": p}, ValueError, P_RANGE.format(repr(p))) for p in (0, 0.0, -0.5, 1.0000001, 2, math.nan, math.inf)),
    ({"p": "half"}, TypeError, "p must be a number, 0 < p <= 1, got 'half'"),
    *(({"eps": eps}, ValueError, EPS_RANGE.format(repr(eps))) for eps in (-1e-5, math.nan, math.inf, -math.inf)),
    (
        {"eps": "small"},
        TypeError,
        "eps must be a number or None (machine epsilon of the computation dtype), got 'small'",
    ),
    (
        {"casting": "twice"},
        ValueError,
        "casting must be 'once' (round after the gain) or 'llama' (round x̂ before the gain), got 'twice'",
    ),
    ({"zero_centered": "yes"}, TypeError, "zero_centered must be True (gain is 1 + weight) or False, got 'yes'"),
]
WRONG_TENSORS = [
    ({"weight": torch.ones(7)}, ValueError, "weight " + SHAPE.format((7,))),
    ({"weight": torch.ones(1)}, ValueError, "weight " + SHAPE.format((1,))),
    ({"weight": torch.ones(2, 8)}, ValueError, "weight " + SHAPE.format((2, 8))),
    ({"weight": torch.ones(2, 3, 8)}, ValueError, "weight " + SHAPE.format((2, 3, 8))),
    ({"bias": torch.ones(1, 8)}, ValueError, "bias " + SHAPE.format((1, 8))),
    (
        {"weight": torch.ones(8), "bias": torch.ones(3, 8)},
        ValueError,
        "bias must have the shape of weight, (8,), got (3, 8)",
    ),
    ({"weight": torch.ones(8, dtype=torch.int64)}, TypeError, "weight " + FLOATING.format("int64")),
    ({"bias": torch.ones(8, dtype=torch.complex64)}, TypeError, "bias " + FLOATING.format("complex64")),
]
WRONG_SHAPES = [
    ((7,), ValueError, "the last dimensions of input must be normalized_shape = (7,), got input of shape (2, 3, 8)"),
    ((3,), ValueError, "the last dimensions of input must be normalized_shape = (3,), got input of shape (2, 3, 8)"),
    (
        (1, 2, 3, 8),
        ValueError,
        "the last dimensions of input must be normalized_shape = (1, 2, 3, 8), got input of shape",
    ),
    ((), ValueError, "normalized_shape must name at least one dimension, got ()"),
    ((-8,), ValueError, "normalized_shape must hold no negative extent, got (-8,)"),
    (8.0, TypeError, "normalized_shape must be an int or a sequence of ints, got 8.0"),
    ((8.0,), TypeError, "normalized_shape must be an int or a sequence of ints, got (8.0,)"),
    (None, TypeError, "normalized_shape must be an int or a sequence of ints, got None"),
]
CALLS = {
    "rms_norm": rms_norm,
    "add_rms_norm": lambda x, *arguments, **options: add_rms_norm(x, torch.ones(x.shape), *arguments, **options),
}


def named(wrong):
    return [pytest.param(*w, id=str(w[0])[:40]) for w in wrong]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(("options", "error", "message"), named(WRONG_EVERYWHERE + WRONG_TENSORS))
def test_wrong_options(call, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call(X, (8,), **options)
    if any(isinstance(v, torch.Tensor) for v in options.values()):  # a frozen or a trained argument: another way in
        with pytest.raises(error, match=re.escape(message)):
            call(X.clone().requires_grad_(), (8,), **options)


@pytest.mark.parametrize(("options", "error", "message"), named(WRONG_EVERYWHERE))
def test_modules_check_when_they_are_made(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        RMSNorm(8, **options)
    if "eps" in options:
        with pytest.raises(error, match=re.escape(message)):
            LayerNorm(8, **options)


@pytest.mark.parametrize("call", [*CALLS.values(), layer_norm], ids=[*CALLS, "layer_norm"])
@pytest.mark.parametrize(("shape", "error", "message"), named(WRONG_SHAPES))
def test_wrong_normalized_shape(call, shape, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call(X, shape)


@pytest.mark.parametrize(("options", "error", "message"), named(WRONG_TENSORS))
def test_wrong_parameters_of_layer_norm(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        layer_norm(X, (8,), **options)


@pytest.mark.parametrize("call", [*CALLS.values(), layer_norm], ids=[*CALLS, "layer_norm"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.uint8], ids=str)
def test_wrong_dtype(call, dtype):
    with pytest.raises(TypeError, match=re.escape("input " + FLOATING.format(str(dtype).split(".")[1]))):
        call(torch.ones(2, 8, dtype=dtype), (8,))


@pytest.mark.parametrize("call", [*CALLS.values(), layer_norm], ids=[*CALLS, "layer_norm"])
@pytest.mark.parametrize("x", [None, [[1.0] * 8], np.ones((2, 8), "f"), 1.0], ids=["None", "list", "array", "1.0"])
def test_what_is_no_tensor(call, x):
    if call is CALLS["add_rms_norm"]:
        with pytest.raises(TypeError, match=r"input .*Tensor"):
            add_rms_norm(x, X, (8,))
        with pytest.raises(TypeError, match=r"residual .*Tensor"):
            add_rms_norm(X, x, (8,))
        return
    with pytest.raises(TypeError, match=r"input .*Tensor"):
        call(x, (8,))
    if x is not None:
        with pytest.raises(TypeError, match=r"weight .*Tensor"):
            call(X, (8,), x)


def test_a_residual_that_does_not_fit():
    with pytest.raises(ValueError, match=r"residual must have the shape of input, .*2, 3, 8.*, got .*3, 8"):
        add_rms_norm(X, torch.ones(3, 8), (8,))
    with pytest.raises(TypeError, match=r"residual must be of a floating dtype.*, got int64"):
        add_rms_norm(X, torch.ones(2, 3, 8, dtype=torch.int64), (8,))


def test_devices_that_differ():
    meta = torch.ones(8, device="meta")
    with pytest.raises(ValueError, match=r"weight must have the device of input, cpu, got meta"):
        rms_norm(X, (8,), meta)
    with pytest.raises(ValueError, match=r"bias must have the device of input, cpu, got meta"):
        layer_norm(X, (8,), None, meta)
    with pytest.raises(ValueError, match=r"residual must have the device of input, cpu, got meta"):
        add_rms_norm(X, torch.ones(2, 3, 8, device="meta"), (8,))


MEMORY = torch.ones(200)
MINE, OVERLAP = MEMORY[:48].view(2, 3, 8), "out must not share memory with "
BAD_OUT = {
    "shape": (
        X,
        {},
        torch.empty(2, 3, 7),
        ValueError,
        "out must have the shape of the result, (2, 3, 8), got (2, 3, 7)",
    ),
    "dtype": (X, {}, X.double(), ValueError, "out must have the dtype of the result, torch.float32, got torch.float64"),
    "llama": (
        X.bfloat16(),
        {"weight": W, "casting": "llama"},
        X.bfloat16(),
        ValueError,
        "out must have the dtype of the result, torch.float32, got torch.bfloat16",
    ),
    "device": (X, {}, X.to("meta"), ValueError, "out must have the device of the result, cpu, got meta"),
    "no tensor": (X, {}, np.empty((2, 3, 8)), TypeError, "out must be a torch.Tensor or None, got ndarray"),
    "partly the input": (MINE, {}, MEMORY[8:56].view(2, 3, 8), ValueError, OVERLAP + "input"),
    "over the weight": (X, {"weight": MEMORY[:8]}, MINE, ValueError, OVERLAP + "weight"),
    "over the bias": (X, {"bias": MEMORY[40:48]}, MINE, ValueError, OVERLAP + "bias"),
    "itself": (X, {}, torch.empty(8).expand(2, 3, 8), ValueError, "out must not be an expanded or overlapping array"),
    "trained": (X, {}, X.clone().requires_grad_(), ValueError, "out= is not differentiable"),
    "a trained weight": (
        X,
        {"weight": W.clone().requires_grad_()},
        X.clone(),
        ValueError,
        "out= is not differentiable",
    ),
}


@pytest.mark.parametrize(("x", "options", "out", "error", "message"), BAD_OUT.values(), ids=BAD_OUT)
def test_out_that_does_not_fit(x, options, out, error, message):
    before = out.clone() if isinstance(out, torch.Tensor) and not out.is_meta else None
    with pytest.raises(error, match=re.escape(message)):
        rms_norm(x, (8,), out=out, **options)
    if before is not None:
        assert torch.equal(before.nan_to_num(), out.nan_to_num()), "something ran before the error"


def test_a_spec_is_made_once_for_equal_arguments():
    spec = norm_spec("rms", (8,), 1e-6, 0.5)
    assert norm_spec("rms", [8], 1e-6, 0.5) is norm_spec("rms", torch.Size([8]), 1e-6, 0.5) is spec
    assert norm_spec("layer", (8,), 1e-6) is not norm_spec("rms", (8,), 1e-6)
    assert (norm_spec("rms", 8).normalized_shape, norm_spec("rms", np.int64(8)).n) == ((8,), 8)


@pytest.mark.parametrize("shape", [(8.0,), 8.0, [8.0], {8: 1}, {8}, "8", None])
def test_a_kept_spec_does_not_hide_a_wrong_shape(shape):
    norm_spec("rms", (8,))
    norm_spec("rms", 8)
    with pytest.raises(TypeError, match="normalized_shape must be an int or a sequence of ints"):
        norm_spec("rms", shape)


def test_a_tensor_is_read_at_every_call():
    """It equals itself after its value has changed."""
    p = torch.tensor(0.5)
    assert norm_spec("rms", 8, None, p).k == 4
    p.fill_(1.0)
    assert norm_spec("rms", 8, None, p).k == 8
