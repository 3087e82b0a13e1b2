"""A row's statistic and projection by one exchange between threads; by two if a mean comes first.

Σx² and Σux are taken at three scales at once (at two if eps hides what the smallest squares lose). The result comes
from the scale that has neither overflowed nor lost bits. So the largest element need not be known first. All sums over
a row are one reduction of a tuple: one round trip through shared memory instead of three. A program with one row takes
the sums at the large scale only where those at the usual scale overflow.
"""

import triton
import triton.language as tl

from rmsnorm.torch.triton.rows import first, power_of_two, quotient, reciprocal_root

# x is multiplied by these scales. Each serves about 100 binades in float32 and 1000 in float64; they overlap.
SMALL_32, USUAL_32, LARGE_32 = tl.constexpr(2.0**108), tl.constexpr(2.0**24), tl.constexpr(2.0**-80)
SMALL_64, USUAL_64, LARGE_64 = tl.constexpr(2.0**700), tl.constexpr(2.0**190), tl.constexpr(2.0**-600)
LEAST_32, LEAST_64 = (
    tl.constexpr(2.0**-100),
    tl.constexpr(2.0**-960),
)  # a mean square that did not underflow
HIDE_32, HIDE_64 = tl.constexpr(2.0**-59), tl.constexpr(2.0**-640)  # from this √eps on, smaller squares do not matter


@triton.jit
def add2(a, b, x, y):
    return a + x, b + y


@triton.jit
def add3(a, b, c, x, y, z):
    return a + x, b + y, c + z


@triton.jit
def add4(a, b, c, d, x, y, z, w):
    return a + x, b + y, c + z, d + w


@triton.jit
def add6(a, b, c, d, e, f, x, y, z, w, v, u):
    return a + x, b + y, c + z, d + w, e + v, f + u


@triton.jit
def max_add2(a, b, c, x, y, z):
    return tl.maximum(a, x), b + y, c + z


@triton.jit
def max_add3(a, b, c, d, x, y, z, w):
    return tl.maximum(a, x), b + y, c + z, d + w


@triton.jit
def inverse_root(small, usual, large, K: tl.constexpr, ROOT: tl.constexpr):
    """(rstd, scale) from Σx² at three scales: x̂ = x·scale·rstd, rstd in [1, 2) where scale's exponent allows it."""
    C: tl.constexpr = usual.dtype
    SMALL: tl.constexpr = SMALL_64 if C == tl.float64 else SMALL_32
    USUAL: tl.constexpr = USUAL_64 if C == tl.float64 else USUAL_32
    LARGE: tl.constexpr = LARGE_64 if C == tl.float64 else LARGE_32
    LEAST: tl.constexpr = LEAST_64 if C == tl.float64 else LEAST_32
    HIDE: tl.constexpr = HIDE_64 if C == tl.float64 else HIDE_32
    END: tl.constexpr = 2.0**1022 if C == tl.float64 else 2.0**126
    overflown = ~(usual < float("inf"))
    total = tl.where(overflown, large, usual)
    scale = tl.where(overflown, tl.full((), LARGE, C), tl.full((), USUAL, C))
    if ROOT < HIDE:
        underflown = usual < LEAST * K
        total = tl.where(underflown, small, total)
        scale = tl.where(underflown, tl.full((), SMALL, C), scale)
    root = tl.full((), ROOT, C) * scale
    rstd = reciprocal_root(quotient(total, K) + root * root)
    # The power of two in rstd goes to the scale: so x·scale overflows nowhere where x̂ does not.
    best = tl.minimum(tl.maximum(scale * power_of_two(power_of_two(rstd)), 1.0 / END), END)
    return rstd * (scale * power_of_two(best)), best


@triton.jit
def projection(small, usual, large, rstd, scale, K: tl.constexpr, ROOT: tl.constexpr):
    """Σux̂ / K from Σux at three scales, by the smallest that has not overflowed: u can make products small, too."""
    C: tl.constexpr = usual.dtype
    SMALL: tl.constexpr = SMALL_64 if C == tl.float64 else SMALL_32
    USUAL: tl.constexpr = USUAL_64 if C == tl.float64 else USUAL_32
    LARGE: tl.constexpr = LARGE_64 if C == tl.float64 else LARGE_32
    HIDE: tl.constexpr = HIDE_64 if C == tl.float64 else HIDE_32
    finite = tl.abs(usual) < float("inf")
    total = tl.where(finite, usual, large)
    inverse = tl.where(finite, tl.full((), 1.0 / USUAL, C), tl.full((), 1.0 / LARGE, C))
    if ROOT < HIDE:
        finite = tl.abs(small) < float("inf")
        total = tl.where(finite, small, total)
        inverse = tl.where(finite, tl.full((), 1.0 / SMALL, C), inverse)
    # First the factors that make the sum smaller, then those that make it larger: it never leaves the range.
    total = total * tl.minimum(scale, 1.0) * (tl.maximum(scale, 1.0) * inverse)
    return quotient(total * rstd, K)


@triton.jit
def scaled(x):
    """x at the smallest, the usual and the largest scale."""
    if x.dtype == tl.float64:
        return x * SMALL_64, x * USUAL_64, x * LARGE_64
    else:
        return x * SMALL_32, x * USUAL_32, x * LARGE_32


@triton.jit
def summed(small, usual, large, ROOT: tl.constexpr):
    """Σx² at three scales, over a tile's columns."""
    if ROOT < (HIDE_64 if usual.dtype == tl.float64 else HIDE_32):
        return tl.reduce((small, usual, large), 1, add3)
    else:
        usual, large = tl.reduce((usual, large), 1, add2)
        return large, usual, large


@triton.jit
def summed_both(small, usual, large, small_u, usual_u, large_u, ROOT: tl.constexpr):
    """Σx² and Σux at three scales, over a tile's columns."""
    if ROOT < (HIDE_64 if usual.dtype == tl.float64 else HIDE_32):
        return tl.reduce((small, usual, large, small_u, usual_u, large_u), 1, add6)
    else:
        usual, large, usual_u, large_u = tl.reduce((usual, large, usual_u, large_u), 1, add4)
        return large, usual, large, large_u, usual_u, large_u


@triton.jit
def rms(x, cols, N: tl.constexpr, K: tl.constexpr, ROOT: tl.constexpr, BLOCK: tl.constexpr, HELD: tl.constexpr):
    """(rstd, scale) of the rows of a tile by their first K elements. Those beyond N are zero.

    HELD: x has registers until the sums are known, so that a branch may need it again.
    """
    ONE: tl.constexpr = HELD and x.shape[0] == 1 and ROOT >= (HIDE_64 if x.dtype == tl.float64 else HIDE_32)
    if K < N:
        x = first(x, cols, K, BLOCK)
    if ONE:
        b = scaled(x)[1]
        usual = tl.sum(b * b, axis=1)
        large = usual
        if not (tl.sum(usual) < float("inf")):  # of one row: all threads agree
            c = scaled(x)[2]
            large = tl.sum(c * c, axis=1)
        return inverse_root(large, usual, large, K, ROOT)
    else:
        a, b, c = scaled(x)
        a, b, c = summed(a * a, b * b, c * c, ROOT)
        return inverse_root(a, b, c, K, ROOT)


@triton.jit
def rms_and_projection(
    x, u, cols, N: tl.constexpr, K: tl.constexpr, ROOT: tl.constexpr, BLOCK: tl.constexpr, HELD: tl.constexpr
):  # fmt: skip
    """(rstd, scale, Σux̂ / K) of the rows of a tile, whose elements beyond N are zero.

    HELD: x and u have registers until the sums are known. Else there is no branch, which would need them.
    """
    ONE: tl.constexpr = HELD and x.shape[0] == 1 and ROOT >= (HIDE_64 if x.dtype == tl.float64 else HIDE_32)
    own = x
    if K < N:
        own = first(x, cols, K, BLOCK)
    if ONE:
        e = scaled(own)[1]
        usual, usual_u = tl.reduce((e * e, scaled(x)[1] * u), 1, add2)
        large, large_u = usual, usual_u
        if not ((tl.sum(usual) < float("inf")) & (tl.abs(tl.sum(usual_u)) < float("inf"))):
            c, f = scaled(x)[2], scaled(own)[2]
            large, large_u = tl.reduce((f * f, c * u), 1, add2)
        rstd, scale = inverse_root(large, usual, large, K, ROOT)
        return rstd, scale, projection(large_u, usual_u, large_u, rstd, scale, K, ROOT)
    else:
        a, b, c = scaled(x)
        d, e, f = scaled(own)
        d, e, f, a, b, c = summed_both(d * d, e * e, f * f, a * u, b * u, c * u, ROOT)
        rstd, scale = inverse_root(d, e, f, K, ROOT)
        return rstd, scale, projection(a, b, c, rstd, scale, K, ROOT)


@triton.jit
def scaled_mean(largest, total, total_large, N: tl.constexpr, ROOT: tl.constexpr):
    """(mean·scale, scale): scale brings the larger of a row's largest magnitude and √eps to about 1."""
    C: tl.constexpr = total.dtype
    LARGE: tl.constexpr = LARGE_64 if C == tl.float64 else LARGE_32
    scale = power_of_two(tl.maximum(largest, tl.full((), ROOT, C)))
    total = tl.where(tl.abs(total) < float("inf"), total * scale, total_large * scale * (1.0 / LARGE))
    return quotient(total, N), scale


@triton.jit
def inverse_deviation(squares, rest, scale, N: tl.constexpr, ROOT: tl.constexpr):
    """(rest of the mean, 1/σ) from Σd² and Σd, where d is the difference from a rounded mean."""
    rest = quotient(rest, N)
    root = tl.full((), ROOT, scale.dtype) * scale
    return rest, reciprocal_root(tl.maximum(quotient(squares, N) - rest * rest, 0.0) + root * root)


@triton.jit
def statistic(
    x, cols, N: tl.constexpr, K: tl.constexpr, ROOT: tl.constexpr, LAYER: tl.constexpr, BLOCK: tl.constexpr,
    HELD: tl.constexpr,
):  # fmt: skip
    """(mean, rstd, scale) of a tile's rows, [ROWS] each; rstd is 1/RMS or, with LAYER, 1/σ. The mean is LAYER's."""
    if LAYER:
        total = tl.reduce((tl.abs(x), x, scaled(x)[2]), 1, max_add2)
        mean, scale = scaled_mean(total[0], total[1], total[2], N, ROOT)
        d = first(x * scale[:, None] - mean[:, None], cols, N, BLOCK)
        squares, rest = tl.reduce((d * d, d), 1, add2)
        rest, rstd = inverse_deviation(squares, rest, scale, N, ROOT)
        return mean + rest, rstd, scale
    else:
        rstd, scale = rms(x, cols, N, K, ROOT, BLOCK, HELD)
        return rstd, rstd, scale


@triton.jit
def statistic_and_projection(
    x, u, cols, N: tl.constexpr, K: tl.constexpr, ROOT: tl.constexpr, LAYER: tl.constexpr, BLOCK: tl.constexpr,
    HELD: tl.constexpr,
):  # fmt: skip
    """The statistic, Σux̂ / K and (LAYER's) Σu / N. With LAYER, Σux̂ = rstd Σu(d − rest), in the same reductions."""
    if LAYER:
        total = tl.reduce((tl.abs(x), x, scaled(x)[2], u), 1, max_add3)
        mean, scale = scaled_mean(total[0], total[1], total[2], N, ROOT)
        d = first(x * scale[:, None] - mean[:, None], cols, N, BLOCK)
        squares, rest, along = tl.reduce((d * d, d, u * d), 1, add3)
        rest, rstd = inverse_deviation(squares, rest, scale, N, ROOT)
        return mean + rest, rstd, scale, quotient((along - rest * total[3]) * rstd, N), quotient(total[3], N)
    else:
        rstd, scale, along = rms_and_projection(x, u, cols, N, K, ROOT, BLOCK, HELD)
        return rstd, rstd, scale, along, along


@triton.jit
def normalized(x, mean, rstd, scale, LAYER: tl.constexpr):
    """x̂ = (x·scale − mean)·rstd; d x̂/d x's common factor is rstd·scale."""
    x = x * scale[:, None]
    if LAYER:
        x -= mean[:, None]
    return x * rstd[:, None]
