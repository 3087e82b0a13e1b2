"""Cases of rms_norm_quantized, and what must hold of its codes and scales."""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import torch

from conformance import DTYPES, PARAMETER, computed_in, covering, laid_out
from rmsnorm import reference
from rmsnorm.spec import partial_count
from rmsnorm.torch import rms_norm_quantized
from tolerances import wide

Quantize = Callable[..., tuple[torch.Tensor, torch.Tensor]]
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


def quotients_to_codes(values: np.ndarray, code: torch.dtype) -> np.ndarray:
    if code == torch.int8:
        return np.rint(values)
    return values.astype(ml_dtypes.float8_e4m3fn).astype(np.float64)


def conforms(function: Quantize, case: dict) -> None:
    """The scale and every code against the oracle."""
    dtype, rows, n, code = (case[name] for name in ("dtype", "rows", "n", "code"))
    generator = torch.Generator().manual_seed(n + rows)
    x = laid_out(torch.randn(rows, n, generator=generator, dtype=torch.float64).to(dtype), case["layout"])
    weight = None
    if case["weight"] is not None:
        weight = (torch.randn(n, generator=generator, dtype=torch.float64) + 0.5).to(case["weight"])
    q, scale = function(x, (n,), weight, case["eps"], dtype=code, p=case["p"])
    assert q.dtype == code
    assert scale.dtype == torch.float32
    assert q.shape == x.shape
    assert scale.shape == (*x.shape[:-1], 1)

    compute = computed_in(dtype)
    eps = torch.finfo(compute).eps if case["eps"] is None else case["eps"]
    most = {torch.int8: 127.0, FP8: 448.0}[code]
    g = None if weight is None else wide(weight)
    exact, size = reference.rms_norm_quantized(
        wide(x).reshape(rows, n), g, k=partial_count(n, case["p"]), eps=eps, most=most
    )
    # y and the scale lie 5 ulp of float32 from the oracle's at most, their quotient 12; so near a boundary between two
    # codes either is right.
    tiny = 12 * 2.0**-23
    np.testing.assert_allclose(wide(scale).reshape(size.shape), size, rtol=tiny)
    codes = wide(q.float()).reshape(rows, n)
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
