"""What a case's results may be: the oracle's value, and how far from it the arithmetic of a right kernel can lie.

How the tolerances follow
-------------------------
u is half an ulp of 1 in the computation's dtype (float32 for 16-bit and float32 inputs, float64 for float64). A result
may be any number between RN(exact − slack) and RN(exact + slack), RN the rounding to the dtype of the result: so a
16-bit result is the oracle correctly rounded, or a neighbour of it where the exact value lies within the slack of the
midpoint between two of them. The slack counts what happens before that last rounding:

- y: 4 ulp of |x̂ g| (of |x̂| (1 + |w|) for a zero-centred gain), and one of |y| if there is a bias. The root halves the
  error of the mean square; 16 or more partial sums of n/16 squares each, all positive, stay within 4 u for n ≤ 5120
  (the errors of a sum are independent: they grow as the root of its length, and the sums average); the reciprocal root,
  the product with x and that with the gain are worth one u or two each. Where a row has to be scaled down, what becomes
  subnormal is rounded to the smallest number there is and multiplied by 1/RMS ≤ √n of the scaled row. Errors of a sum
  of equal terms (`dependent`) may all have one direction: 8 more u of |x̂ g|, half of the 8 additions in a lane, 3 of
  the accumulators, 4 of such sums and at most 4 of the lanes, less the 2 u that are counted above.
- dx: (8 + √(n/16)) u of (|v| + |x̂| Σ|x̂ v| / k) / r, v = g ⊙ dy: what the two terms lose at worst when they cancel.
  The root is the probabilistic bound for a sum of n/16 terms (Higham & Mary 2019) whose signs do not help.
- dweight: 16 u of Σ|dy x̂|, and dbias: 16 u of Σ|dy|. No dependence on the number of rows. For x̂ of a row that is scaled
  down, √n of the smallest number times Σ|dy| is added to dweight's, as to y's.
- LayerNorm subtracts the mean first. What that loses is relative to |x|, not to |x − μ|: everything is multiplied by
  1 + max|x| / σ, row by row.
- `casting="llama"`: x̂ is rounded to the input's dtype, then multiplied and rounded again; the interval is carried
  through. Its gradients pass the same roundings: 3 u of the input's dtype is added.
- A composite rounds the gradient of the rounded sum of `add_rms_norm` twice on its way, in the stream's dtype: 2 u of
  that is added, also where a kernel may leave the work to it (dtypes that differ, `casting="llama"`).
"""

from types import SimpleNamespace

import numpy as np
import torch

from conformance import NUMPY, Case, computed_in
from rmsnorm import reference

FORMATS = {  # bits of the significand, exponent of the smallest subnormal, largest number
    torch.float16: (11, -24, 65504.0),
    torch.bfloat16: (8, -133, (2 - 2**-7) * 2.0**127),
    torch.float32: (24, -149, float(np.finfo(np.float32).max)),
    torch.float64: (53, -1074, float(np.finfo(np.float64).max)),
}
DTYPES = tuple(FORMATS)


def rounded(x: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """x, float64 or wider, correctly rounded to dtype (ties to even), subnormals and overflow included."""
    with np.errstate(all="ignore"):
        if dtype in (torch.float32, torch.float64):  # one C conversion; those to 16 bits may take two
            return x.astype(NUMPY[dtype]).astype(x.dtype)
        step = ulp(x, dtype)
        near = np.rint(x / step) * step
        return np.where(np.abs(near) > FORMATS[dtype][2], np.copysign(np.inf, x), np.where(np.isfinite(x), near, x))


def ulp(x: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The spacing of dtype's numbers at |x|."""
    bits, smallest, largest = FORMATS[dtype]
    clipped = np.where(np.isfinite(x), np.minimum(np.abs(x), largest), largest)
    if clipped.dtype == np.float64 and dtype != torch.float64:  # the exponent by its bits: a fifth of frexp's time
        exponent = np.maximum((clipped.view(np.int64) >> 52) - 1022 - bits, smallest)
        return (exponent + 1023 << 52).view(np.float64)
    exponent = np.where(clipped > 0, np.frexp(clipped)[1] - bits, smallest)  # frexp's exponent of 0 is 0
    return np.ldexp(np.ones_like(clipped), np.maximum(exponent, smallest))


def smallest(dtype: torch.dtype) -> np.longdouble:
    return np.ldexp(np.longdouble(1), FORMATS[dtype][1])


def half_ulp(dtype: torch.dtype) -> float:
    return 2.0 ** -FORMATS[dtype][0]


def wide(tensor: torch.Tensor, compute: torch.dtype = torch.float32) -> np.ndarray:
    """For the oracle: float64, or longdouble where the computation under test is itself done in float64."""
    values = tensor.detach().double().numpy()
    return values.astype(np.longdouble) if compute == torch.float64 else values


Interval = tuple[np.ndarray, np.ndarray]


def around(exact: np.ndarray, slack: np.ndarray, dtype: torch.dtype) -> Interval:
    """The numbers of dtype that may stand for exact if what precedes the last rounding is off by slack at most.

    Two of the computation's smallest steps are added: products that are subnormal are rounded to those.
    """
    with np.errstate(all="ignore"):
        slack = slack + 2 * smallest(computed_in(dtype))
        return rounded(exact - slack, dtype), rounded(exact + slack, dtype)


def expected(
    case: Case,
    inputs: SimpleNamespace,
    stream: torch.Tensor | None = None,
    composite: bool = False,
    dependent: bool = False,
) -> dict[str, Interval]:
    """For each result of a case the least and the greatest right value; shapes (rows, n) and (n,), or with
    heads between.

    For add_rms_norm, stream is the rounded sum that the backend returned (tests demand it bit for bit elsewhere).
    dependent: the errors of a sum may all have one direction.
    """
    compute = computed_in(case.dtype)
    normed = inputs.x if stream is None else stream
    own = (case.n,) if case.heads is None else (case.heads, case.n)
    rows = (case.rows // case.heads, *own) if case.heads else (case.rows, case.n)

    def flat(tensor: torch.Tensor | None) -> np.ndarray | None:
        return None if tensor is None else wide(tensor, compute).reshape(rows)

    a, u = flat(normed), flat(inputs.dy)
    g, b = (None if t is None else wide(t, compute).reshape(own) for t in (inputs.weight, inputs.bias))
    with np.errstate(all="ignore"):
        if case.operation == "layer_norm":
            return _layer(case, a, u, g, b)
        return _rms(case, inputs, a, u, g, b, composite, dependent)


def _rms(case, inputs, a, u, g, b, composite, dependent) -> dict[str, Interval]:
    compute = computed_in(case.dtype)
    options = {"k": case.k, "eps": case.eps_value}
    zero_centered = case.zero_centered
    if g is not None and zero_centered and case.casting == "llama":
        g, zero_centered = rounded(1 + g, case.weight), False  # as `(1 + weight) * x̂.to(dtype)` has it
    x_hat = reference.rms_norm(a, **options)
    y = reference.rms_norm(a, g, b, **options, zero_centered=zero_centered)
    reach = np.abs(x_hat) * _reach(g, zero_centered)
    normed_in = case.residual or case.dtype
    if case.casting == "llama":
        low, high = _llama(case, g, b, x_hat, normed_in)
    else:
        slack = 4 * ulp(reach, compute) + (0 if b is None else ulp(y, compute))
        slack = slack + (8 * half_ulp(compute) * reach if dependent else 0)
        low, high = around(y, slack + np.sqrt(case.n) * smallest(compute), normed_in)
    if normed_in != case.dtype:  # rounded to the residual's dtype, then to the input's
        low, high = rounded(low, case.dtype), rounded(high, case.dtype)
    found = {"y": (low, high)}

    unit = half_ulp(compute)
    r = _root(a, case)
    v = np.abs(u) * _reach(g, zero_centered)
    da, dg, db = reference.rms_norm_vjp(u, a, g, **options, zero_centered=zero_centered)
    terms = (v + np.abs(x_hat) * np.sum(np.abs(x_hat) * v, -1, keepdims=True) / case.k) / r
    slack = _gradient_units(case) * unit * terms
    coarse = 0.0
    if case.casting == "llama":
        coarse = 3 * max(half_ulp(case.dtype), half_ulp(normed_in))
    elif normed_in != case.dtype:
        coarse = 2 * half_ulp(normed_in)  # the gradient takes the same way back
    slack = slack + coarse * terms
    if case.operation == "add_rms_norm":
        w = wide(inputs.grad_residual, compute).reshape(a.shape)
        ds = da + w
        slack = slack + unit * np.abs(ds)
        if composite or case.casting == "llama" or case.residual != case.dtype:  # the latter two may take a composite
            slack = slack + 2 * half_ulp(case.residual) * (np.abs(da) + np.abs(w))
        found |= {"dx": around(ds, slack, case.dtype), "dresidual": around(ds, slack, case.residual)}
    else:
        found["dx"] = around(da, slack, case.dtype)
    return found | _parameters(case, x_hat, u, dg, db, 1.0, coarse)


def _layer(case, a, u, g, b) -> dict[str, Interval]:
    compute = computed_in(case.dtype)
    unit = half_ulp(compute)
    x_hat = reference.layer_norm(a, eps=case.eps_value)
    y = reference.layer_norm(a, g, b, eps=case.eps_value)
    sigma = np.sqrt(np.var(a, -1, keepdims=True) + case.eps_value)
    loss = 1 + np.max(np.abs(a), -1, keepdims=True, initial=0.0) / sigma
    slack = 4 * ulp((np.abs(x_hat) + loss) * _reach(g, False), compute) + (0 if b is None else ulp(y, compute))
    v = np.abs(u) * _reach(g, False)
    da, dg, db = reference.layer_norm_vjp(u, a, g, eps=case.eps_value)
    spread = (np.abs(x_hat) + loss * unit) * np.mean(np.abs(x_hat) * v, -1, keepdims=True)
    terms = (v + np.mean(v, -1, keepdims=True) + spread) / sigma
    dx = around(da, _gradient_units(case) * unit * terms * loss, case.dtype)
    return {"y": around(y, slack, case.dtype), "dx": dx} | _parameters(case, x_hat, u, dg, db, loss, 0.0)


def _parameters(case, x_hat, u, dg, db, loss, coarse) -> dict[str, Interval]:
    unit, found = half_ulp(computed_in(case.dtype)), {}
    if case.weight is not None:
        each = np.abs(u) * (np.abs(x_hat) if case.operation != "layer_norm" else np.abs(x_hat) + loss)
        slack = (16 * unit + coarse) * each.sum(0)
        slack = slack + np.sqrt(case.n) * smallest(computed_in(case.dtype)) * np.abs(u).sum(0)
        found["dweight"] = around(dg, slack, case.weight)
    if case.bias is not None:
        found["dbias"] = around(db, (16 * unit + coarse) * np.abs(u).sum(0), case.bias)
    return found


def _llama(case: Case, g: np.ndarray | None, b: np.ndarray | None, x_hat: np.ndarray, dtype: torch.dtype) -> Interval:
    """x̂ rounded, times the weight, plus the bias, each in the promoted dtype: both ends of the interval together."""
    ends = around(x_hat, 4 * ulp(x_hat, computed_in(case.dtype)), dtype)
    if g is not None:
        dtype = torch.promote_types(dtype, case.weight)
        ends = tuple(rounded(end * g, dtype) for end in ends)
        ends = (np.minimum(*ends), np.maximum(*ends))
    if b is not None:
        dtype = torch.promote_types(dtype, case.bias)
        ends = tuple(rounded(end + b, dtype) for end in ends)
    return ends


def _root(a: np.ndarray, case: Case) -> np.ndarray:
    e = np.frexp(np.max(np.abs(a[..., : case.k]), -1, keepdims=True, initial=0.0))[1]
    c = np.ldexp(a[..., : case.k], -e)
    return np.ldexp(np.sqrt(np.mean(c * c, -1, keepdims=True) + np.ldexp(np.longdouble(case.eps_value), -2 * e)), e)


def _reach(g: np.ndarray | None, zero_centered: bool) -> np.ndarray | float:
    """How large the gain is before 1 + w cancels."""
    return 1.0 if g is None else np.abs(g) + (1 if zero_centered else 0)


def _gradient_units(case: Case) -> float:
    return 8 + np.sqrt(case.n / 16)


def check(actual: torch.Tensor, interval: Interval, what: str) -> None:
    """Every element lies in its interval; NaN and infinities where the interval has them. Says where it is worst."""
    low, high = interval
    found = wide(actual, actual.dtype).reshape(low.shape)
    with np.errstate(all="ignore"):
        wrong = ~((low <= found) & (found <= high)) & ~(np.isnan(low) & np.isnan(found))
        if wrong.any():
            off = np.where(wrong, np.maximum(low - found, found - high), 0.0) / ulp((low + high) / 2, actual.dtype)
            at = np.unravel_index(np.argmax(np.where(np.isnan(off), np.inf, off)), off.shape)
            raise AssertionError(
                f"{what}: {wrong.sum()} of {wrong.size} elements are wrong; at {tuple(map(int, at))} it is "
                f"{found[at]!r} but must lie in [{low[at]!r}, {high[at]!r}], {off[at]:.3g} ulp away"
            )
