"""Rows too long for registers, in pieces of BLOCK elements: tiles of [1, BLOCK], and the statistic by sweeps.

A sweep that reads a row again mostly reads it from the second cache level.
"""

import triton
import triton.language as tl

from rmsnorm.torch.triton.rows import KEEP_AS_USUAL, addresses
from rmsnorm.torch.triton.statistic import (
    add2,
    inverse_deviation,
    inverse_root,
    max_add2,
    scaled,
    scaled_mean,
    summed,
)


@triton.jit
def read_piece(
    ptr, offset, cols, LIMIT: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, BYTES: tl.constexpr,
    KEEP: tl.constexpr = KEEP_AS_USUAL,
):  # fmt: skip
    """The elements ``cols`` of a row, zeros from LIMIT on; KEEP is the caches' eviction policy."""
    place = addresses(ptr, offset, cols, BYTES)
    if N % BLOCK == 0 and LIMIT == N:
        return tl.load(place, eviction_policy=KEEP)
    return tl.load(place, mask=(cols < LIMIT)[None, :], other=0, eviction_policy=KEEP)


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
    BLOCK: tl.constexpr, BYTES: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """(mean, rstd, scale) of one row, each [1, 1]: x̂ = (x·scale − mean)·rstd."""
    if LAYER:
        return layer_statistic(ptr, offset, C, N, ROOT, BLOCK, BYTES, STAGES)
    return rms_statistic(ptr, offset, C, N, K, ROOT, BLOCK, BYTES, STAGES)


@triton.jit
def rms_statistic(
    ptr, offset, C: tl.constexpr, N: tl.constexpr, K: tl.constexpr, ROOT: tl.constexpr,
    BLOCK: tl.constexpr, BYTES: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One sweep over the first K elements, at the scales of statistic.py."""
    LIMIT: tl.constexpr = min(N, (K + 15) // 16 * 16)  # whole vectors: a mask that cuts one makes narrow accesses
    small = tl.zeros([1, BLOCK], C)
    usual = tl.zeros([1, BLOCK], C)
    large = tl.zeros([1, BLOCK], C)
    for start in tl.range(0, K, BLOCK, num_stages=STAGES):
        cols = start + tl.arange(0, BLOCK)
        x = read_piece(ptr, offset, cols, LIMIT, N, BLOCK, BYTES).to(C)
        if K < LIMIT:
            x = tl.where((cols < K)[None, :], x, 0.0)
        a, b, c = scaled(x)
        small += a * a
        usual += b * b
        large += c * c
    small, usual, large = summed(small, usual, large, ROOT)
    rstd, scale = inverse_root(small, usual, large, K, ROOT)
    return tl.zeros([1, 1], C), rstd[:, None], scale[:, None]


@triton.jit
def layer_statistic(
    ptr, offset, C: tl.constexpr, N: tl.constexpr, ROOT: tl.constexpr,
    BLOCK: tl.constexpr, BYTES: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Two sweeps: the largest magnitude and the mean, then what the two-pass variance needs."""
    largest = tl.zeros([1, BLOCK], C)
    total = tl.zeros([1, BLOCK], C)
    large = tl.zeros([1, BLOCK], C)
    for start in tl.range(0, N, BLOCK, num_stages=STAGES):
        x = read_piece(ptr, offset, start + tl.arange(0, BLOCK), N, N, BLOCK, BYTES).to(C)
        largest = tl.maximum(largest, tl.abs(x))
        total += x
        large += scaled(x)[2]
    largest, total, large = tl.reduce((largest, total, large), 1, max_add2)
    mean, scale = scaled_mean(largest, total, large, N, ROOT)
    mean, scale = mean[:, None], scale[:, None]
    rest = tl.zeros([1, BLOCK], C)
    squares = tl.zeros([1, BLOCK], C)
    for start in tl.range(0, N, BLOCK, num_stages=STAGES):
        cols = start + tl.arange(0, BLOCK)
        d = read_piece(ptr, offset, cols, N, N, BLOCK, BYTES).to(C) * scale - mean
        d = tl.where((cols < N)[None, :], d, 0.0)
        rest += d
        squares += d * d
    squares, rest = tl.reduce((squares, rest), 1, add2)
    rest, rstd = inverse_deviation(squares[:, None], rest[:, None], scale, N, ROOT)
    return mean + rest, rstd, scale
