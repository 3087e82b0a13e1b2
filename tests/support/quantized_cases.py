"""Cases of rms_norm_quantized and add_rms_norm_quantized, and what must hold of their codes and scales."""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import torch

from conformance import DTYPES, PARAMETER, computed_in, covering, laid_out, to_numpy
from rmsnorm import reference
from rmsnorm.spec import partial_count
from rmsnorm.torch import add_rms_norm_quantized, rms_norm_quantized
from tolerances import wide

Quantize = Callable[..., tuple[torch.Tensor, ...]]
FP8 = torch.float8_e4m3fn
CASES = list(
    covering(
        6,
        dtype=DTYPES,
        rows=(0, 1, 2, 7, 300),
        n=(1, 2, 15, 16, 17, 64, 129, 1000, 5120),
        p=(1.0, 0.5, 0.0625),
        weight=PARAMETER,
        eps=(None, 1e-5, 0.1),
        code=(torch.int8, FP8),
        layout=("contiguous", "sliced", "transposed", "misaligned", "padded", "permuted", "expanded"),
    )
)
SUM_CASES = list(
    covering(
        7,
        dtype=DTYPES,
        residual=("the same", *DTYPES),
        rows=(0, 1, 7, 300),
        n=(1, 15, 64, 129, 1000),
        p=(1.0, 0.5),
        weight=PARAMETER,
        eps=(None, 1e-5),
        code=(torch.int8, FP8),
        layout=("contiguous", "sliced", "transposed", "misaligned", "permuted", "expanded"),
        residual_layout=("contiguous", "sliced", "transposed", "misaligned", "permuted", "expanded"),
    )
)


def quotients_to_codes(values: np.ndarray, code: torch.dtype) -> np.ndarray:
    if code == torch.int8:
        return np.rint(values)
    return values.astype(ml_dtypes.float8_e4m3fn).astype(np.float64)


def conforms(function: Quantize, case: dict) -> None:
    """The scale and every code against the oracle."""
    n, code, generator = case["n"], case["code"], torch.Generator().manual_seed(case["n"] + case["rows"])
    x = rows_of(case, case["dtype"], case["layout"], generator)
    weight = weight_of(case, generator)
    q, scale = function(x, (n,), weight, case["eps"], dtype=code, p=case["p"])
    exact = reference.rms_norm_quantized(
        wide(x).reshape(-1, n), None if weight is None else wide(weight), **reference_options(case, case["dtype"])
    )
    right_codes(q, scale, x.shape, code, *exact)


def sum_conforms(function: Quantize, case: dict) -> None:
    """The same of a sum, and the sum; with the bits of the two operations one after the other."""
    n, code, generator = case["n"], case["code"], torch.Generator().manual_seed(case["n"] + case["rows"])
    dtype = case["dtype"] if case["residual"] == "the same" else case["residual"]
    x = rows_of(case, case["dtype"], case["layout"], generator)
    residual = rows_of(case, dtype, case["residual_layout"], generator).reshape(x.shape)
    weight = weight_of(case, generator)
    options = {"dtype": code, "p": case["p"]}
    q, scale, total = function(x, residual, (n,), weight, case["eps"], **options)
    g, given = None if weight is None else wide(weight), reference_options(case, dtype)
    found = wide(total).reshape(-1, n)
    exact, size, s = reference.add_rms_norm_quantized(
        to_numpy(x).reshape(-1, n), to_numpy(residual).reshape(-1, n), g, **given
    )
    if torch.promote_types(case["dtype"], dtype) in (dtype, torch.float64):
        assert np.array_equal(found, s)
    else:  # rounded to float32 first
        np.testing.assert_allclose(found, s, rtol=torch.finfo(dtype).eps, atol=0)
        exact, size = reference.rms_norm_quantized(found, g, **given)
    right_codes(q, scale, x.shape, code, exact, size)
    assert total.dtype == dtype
    if function is add_rms_norm_quantized:
        assert total.stride() == torch.empty_like(residual).stride()
        for one, two in zip((q, scale), rms_norm_quantized(total, (n,), weight, case["eps"], **options), strict=True):
            assert torch.equal(one.view(torch.int8), two.view(torch.int8))


def rows_of(case: dict, dtype: torch.dtype, layout: str, generator: torch.Generator) -> torch.Tensor:
    return laid_out(torch.randn(case["rows"], case["n"], generator=generator, dtype=torch.float64).to(dtype), layout)


def weight_of(case: dict, generator: torch.Generator) -> torch.Tensor | None:
    if case["weight"] is None:
        return None
    return (torch.randn(case["n"], generator=generator, dtype=torch.float64) + 0.5).to(case["weight"])


def reference_options(case: dict, dtype: torch.dtype) -> dict:
    eps = torch.finfo(computed_in(dtype)).eps if case["eps"] is None else case["eps"]
    return {"k": partial_count(case["n"], case["p"]), "eps": eps, "most": {torch.int8: 127.0, FP8: 448.0}[case["code"]]}


def right_codes(
    q: torch.Tensor, scale: torch.Tensor, shape: torch.Size, code: torch.dtype, exact: np.ndarray, size: np.ndarray
) -> None:
    assert q.dtype == code
    assert scale.dtype == torch.float32
    assert q.shape == shape
    assert scale.shape == (*shape[:-1], 1)
    # y and the scale lie 5 ulp of float32 from the oracle's at most, their quotient 12; so near a boundary between two
    # codes either is right.
    tiny = 12 * 2.0**-23
    np.testing.assert_allclose(wide(scale).reshape(size.shape), size, rtol=tiny)
    codes = wide(q.float()).reshape(exact.shape)
    low, high = (quotients_to_codes(exact - s * tiny * np.abs(exact), code) for s in (np.sign(exact), -np.sign(exact)))
    assert ((np.minimum(low, high) <= codes) & (codes <= np.maximum(low, high))).all()
    clear = low == high
    assert clear.size < 1000 or clear.mean() > 0.99
    assert np.array_equal(codes[clear], low[clear])
    if code == torch.int8:
        assert (np.abs(codes - exact) <= 0.5 + 127 * tiny).all()
        assert np.abs(codes).max(initial=0) <= 127


def every_code_and_every_tie(function: Quantize, code: torch.dtype) -> None:
    """Rows whose quotients are exact: every code is its own quotient, and a tie goes to the even code."""
    numbers = torch.arange(-127, 128) if code == torch.int8 else torch.arange(256, dtype=torch.uint8).view(FP8)
    numbers = numbers.float()[numbers.float().isfinite()]
    most = numbers.max()
    ordered = numbers.unique()
    ties = (ordered[1:] + ordered[:-1]) / 2
    for values in (numbers, torch.cat([ties, most[None]])):
        # eps = 1 and p = 1/n with a first element of 0: r = 1, y = x, and the scale is exactly 1.
        row = torch.cat([torch.zeros(1), values])
        q, scale = function(row, (len(row),), None, 1.0, dtype=code, p=1 / len(row))
        assert scale.item() == 1
        expected = row.round() if code == torch.int8 else row.to(FP8).float()
        assert torch.equal(q.float(), expected)


def rows_without_a_scale(function: Quantize, code: torch.dtype) -> None:
    """Zeros have scale 0, rows that are not finite NaN; the codes of both are 0."""
    row = torch.randn(32)
    x = row.repeat(6, 1)
    x[1] = 0
    x[2, 5], x[3, 31], x[4, 0] = torch.nan, torch.inf, -torch.inf
    q, scale = function(x, (32,), None, 1e-5, dtype=code, p=1.0)
    assert scale[1] == 0
    assert scale[2:5].isnan().all()
    assert not q[1:5].float().any()
    for i in (0, 5):
        alone = function(row, (32,), None, 1e-5, dtype=code, p=1.0)
        assert torch.equal(q[i].float(), alone[0].float())
        assert torch.equal(scale[i], alone[1])


def subnormal_scales_do_not_leave_the_codes() -> None:
    x = torch.randn(4, 64) * 1e-22
    q, scale = rms_norm_quantized(x, (64,), torch.full((64,), 1e-22), 1.0)
    y = x.double() * 1e-22
    assert ((q.double() * scale.double() - y).abs() <= 1.5e-45 * 127).all()


def heads_and_several_dimensions() -> None:
    x, weight = torch.randn(2, 3, 4, 8), torch.randn(3, 4, 8)
    q, scale = rms_norm_quantized(x, (4, 8), weight, 1e-5)
    assert scale.shape == (2, 3, 1, 1)
    for h in range(3):
        alone = rms_norm_quantized(x[:, h], (4, 8), weight[h], 1e-5)
        assert torch.equal(q[:, h], alone[0])
        assert torch.equal(scale[:, h], alone[1])
