"""Rows too long for registers, in pieces of BLOCK elements: tiles of [1, BLOCK], and the statistic by sweeps.

What a sweep reads again comes from the second cache level mostly.
"""

import triton
import triton.language as tl

from rmsnorm.torch.triton.rows import addresses, power_of_two, quotient, reciprocal_root


@triton.jit
def read_piece(
    ptr, offset, cols, LIMIT: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, BYTES: tl.constexpr
):  # fmt: skip
    """The elements ``cols`` of a row, zeros from LIMIT on."""
    if N % BLOCK == 0 and LIMIT == N:
        return tl.load(addresses(ptr, offset, cols, BYTES))
    return tl.load(addresses(ptr, offset, cols, BYTES), mask=(cols < LIMIT)[None, :], other=0)


@triton.jit
def write_piece(ptr, offset, cols, value, N: tl.constexpr, BLOCK: tl.constexpr, BYTES: tl.constexpr):
    """The elements ``cols`` of a row, rounded to the dtype of ``ptr``."""
    place, value = addresses(ptr, offset, cols, BYTES), value.to(ptr.dtype.element_ty)
    if N % BLOCK == 0:
        tl.store(place, value)
    else:
        tl.store(place, value, mask=(cols < N)[None, :])


@triton.jit
def read_parameter_piece(ptr, row, heads, cols, HEADS: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr):
    """The elements ``cols`` of a gain or bias."""
    place = ptr + cols[None, :]
    if HEADS:
        place += (row % heads)[:, None] * N
    if N % BLOCK == 0:
        return tl.load(place)
    return tl.load(place, mask=(cols < N)[None, :], other=0)


@triton.jit
def looped_statistic(
    ptr, offset, C: tl.constexpr, N: tl.constexpr, K: tl.constexpr, ROOT: tl.constexpr, LAYER: tl.constexpr,
    BLOCK: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """(mean, rstd, scale) of one row, each [1, 1]: x̂ = (x·scale − mean)·rstd."""
    if LAYER:
        return layer_statistic(ptr, offset, C, N, ROOT, BLOCK, BYTES)
    return rms_statistic(ptr, offset, C, N, K, ROOT, BLOCK, BYTES)


@triton.jit
def rms_statistic(
    ptr, offset, C: tl.constexpr, N: tl.constexpr, K: tl.constexpr, ROOT: tl.constexpr,
    BLOCK: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """One sweep over the first K elements: Σx² is taken at three scales, and the one that stayed in range counts."""
    # Whatever the row, one of them loses nothing: squares of up to 2^17 elements of any exponent.
    SMALL: tl.constexpr = 2.0**600 if C == tl.float64 else 2.0**90
    LARGE: tl.constexpr = 2.0**-600 if C == tl.float64 else 2.0**-80
    LEAST: tl.constexpr = 2.0**-960 if C == tl.float64 else 2.0**-100  # of a mean square that underflow has spared
    usual = tl.zeros([1, BLOCK], C)
    small = tl.zeros([1, BLOCK], C)
    large = tl.zeros([1, BLOCK], C)
    for start in range(0, K, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        x = read_piece(ptr, offset, cols, K, N, BLOCK, BYTES).to(C)
        usual += x * x
        small += (x * SMALL) * (x * SMALL)
        large += (x * LARGE) * (x * LARGE)
    usual = tl.sum(usual, axis=1)[:, None]
    overflown = ~(usual < float("inf"))
    underflown = usual < LEAST * K
    if ROOT * ROOT >= LEAST * 2.0**30:  # an eps that hides what smaller squares lose
        underflown = underflown & overflown
    total = tl.where(overflown, tl.sum(large, axis=1)[:, None], usual)
    total = tl.where(underflown, tl.sum(small, axis=1)[:, None], total)
    scale = tl.where(overflown, tl.full((), LARGE, C), tl.full((), 1.0, C))
    scale = tl.where(underflown, tl.full((), SMALL, C), scale)
    root = tl.full((), ROOT, C) * scale
    return tl.zeros([1, 1], C), reciprocal_root(quotient(total, K) + root * root), scale


@triton.jit
def layer_statistic(
    ptr, offset, C: tl.constexpr, N: tl.constexpr, ROOT: tl.constexpr, BLOCK: tl.constexpr, BYTES: tl.constexpr
):  # fmt: skip
    """Three sweeps: the largest magnitude, the mean, and what the two-pass variance needs."""
    largest = tl.full([1, BLOCK], ROOT, C)
    for start in range(0, N, BLOCK):
        x = read_piece(ptr, offset, start + tl.arange(0, BLOCK), N, N, BLOCK, BYTES).to(C)
        largest = tl.maximum(largest, tl.abs(x))
    scale = power_of_two(tl.max(largest, axis=1))[:, None]
    total = tl.zeros([1, BLOCK], C)
    for start in range(0, N, BLOCK):
        total += read_piece(ptr, offset, start + tl.arange(0, BLOCK), N, N, BLOCK, BYTES).to(C) * scale
    mean = quotient(tl.sum(total, axis=1), N)[:, None]
    rest = tl.zeros([1, BLOCK], C)
    squares = tl.zeros([1, BLOCK], C)
    for start in range(0, N, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        d = read_piece(ptr, offset, cols, N, N, BLOCK, BYTES).to(C) * scale - mean
        d = tl.where((cols < N)[None, :], d, 0.0)
        rest += d
        squares += d * d
    rest = quotient(tl.sum(rest, axis=1), N)[:, None]
    variance = tl.maximum(quotient(tl.sum(squares, axis=1), N)[:, None] - rest * rest, 0.0)
    root = tl.full((), ROOT, C) * scale
    return mean + rest, reciprocal_root(variance + root * root), scale
