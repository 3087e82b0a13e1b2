"""The forward pass of widths that are no powers of two: a row held in two or three parts, each a power of two.

7168 elements are 4096 + 2048 + 1024, and no lane is idle; in one block of 8192, 12 % would be (37 % at 5120).
"""

import triton
import triton.language as tl

from rmsnorm.torch.triton.forward_kernels import affine
from rmsnorm.torch.triton.rows import addresses, first, gain, row_offset
from rmsnorm.torch.triton.statistic import inverse_root, normalized, scaled, summed


@triton.jit
def read_part(
    ptr, offset, START: tl.constexpr, SIZE: tl.constexpr, N: tl.constexpr, BYTES: tl.constexpr
):  # fmt: skip
    """SIZE elements of a row from START on, zeros beyond N."""
    cols = START + tl.arange(0, SIZE)
    if START + SIZE <= N:
        return tl.load(addresses(ptr, offset, cols, BYTES))
    return tl.load(addresses(ptr, offset, cols, BYTES), mask=(cols < N)[None, :], other=0)


@triton.jit
def write_part(
    ptr, offset, value, START: tl.constexpr, SIZE: tl.constexpr, N: tl.constexpr, BYTES: tl.constexpr
):  # fmt: skip
    """The same elements, rounded to the dtype of ``ptr``."""
    cols = START + tl.arange(0, SIZE)
    place, value = addresses(ptr, offset, cols, BYTES), value.to(ptr.dtype.element_ty)
    if START + SIZE <= N:
        tl.store(place, value)
    else:
        tl.store(place, value, mask=(cols < N)[None, :])


@triton.jit
def part_and_sums(
    x_ptr, x_at, residual_ptr, residual_at, sum_ptr, sum_at, C: tl.constexpr, START: tl.constexpr, SIZE: tl.constexpr,
    N: tl.constexpr, K: tl.constexpr, ROOT: tl.constexpr, ADD: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """A part of x or, with ADD, of x + residual, which is written too; and its Σx² of the first K at three scales."""
    x = read_part(x_ptr, x_at, START, SIZE, N, BYTES)
    if ADD:
        x = (x.to(C) + read_part(residual_ptr, residual_at, START, SIZE, N, BYTES).to(C)).to(x.dtype)
        write_part(sum_ptr, sum_at, x, START, SIZE, N, BYTES)
    x = x.to(C)
    small, usual, large = scaled(first(x, START + tl.arange(0, SIZE), K, START + SIZE))
    small, usual, large = summed(small * small, usual * usual, large * large, ROOT)
    return x, small, usual, large


@triton.jit
def finish_part(
    x, rstd, scale, w, b, y_ptr, y_at, T: tl.constexpr,
    START: tl.constexpr, SIZE: tl.constexpr, N: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    ZERO_CENTERED: tl.constexpr, ROUND_FIRST: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """A part of y, written."""
    C: tl.constexpr = x.dtype
    g, shift = None, None
    if HAS_WEIGHT:
        g = gain(w, C, ZERO_CENTERED, ROUND_FIRST)
    if HAS_BIAS:
        shift = b.to(C)
    xhat = normalized(x, rstd, rstd, scale, False)
    y = affine(xhat, g, shift, T, y_ptr.dtype.element_ty, HAS_WEIGHT, HAS_BIAS, ROUND_FIRST)
    write_part(y_ptr, y_at, y, START, SIZE, N, BYTES)


@triton.jit
def forward_parts_kernel(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, y_ptr, sum_ptr, rows, middle, inner, heads,
    x_outer, x_middle, x_inner, residual_outer, residual_middle, residual_inner,
    y_outer, y_middle, y_inner, sum_outer, sum_middle, sum_inner,
    N: tl.constexpr, K: tl.constexpr, ROOT: tl.constexpr,
    ADD: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HEADS: tl.constexpr,
    ZERO_CENTERED: tl.constexpr, ROUND_FIRST: tl.constexpr,
    LEVELS: tl.constexpr, BYTES: tl.constexpr, BLOCK: tl.constexpr, SECOND: tl.constexpr, THIRD: tl.constexpr,
):  # fmt: skip
    """One row a program, in parts of BLOCK, SECOND and THIRD elements; there is no third part if THIRD is 0."""
    T: tl.constexpr = x_ptr.dtype.element_ty
    C: tl.constexpr = tl.float64 if T == tl.float64 else tl.float32
    LAST: tl.constexpr = BLOCK + SECOND
    row = tl.program_id(0) + tl.arange(0, 1)
    x_at = row_offset(row, middle, inner, x_outer, x_middle, x_inner, LEVELS)
    residual_at = row_offset(row, middle, inner, residual_outer, residual_middle, residual_inner, LEVELS)
    sum_at = row_offset(row, middle, inner, sum_outer, sum_middle, sum_inner, LEVELS)
    y_at = row_offset(row, middle, inner, y_outer, y_middle, y_inner, LEVELS)
    parameter_at = row * 0
    if HEADS:
        parameter_at = (row % heads) * N
    aw, bw, cw, ab, bb, cb = None, None, None, None, None, None
    if HAS_WEIGHT:  # read before the reductions below wait
        aw = read_part(weight_ptr, parameter_at, 0, BLOCK, N, 1)
        bw = read_part(weight_ptr, parameter_at, BLOCK, SECOND, N, 1)
        if THIRD:
            cw = read_part(weight_ptr, parameter_at, LAST, THIRD, N, 1)
    if HAS_BIAS:
        ab = read_part(bias_ptr, parameter_at, 0, BLOCK, N, 1)
        bb = read_part(bias_ptr, parameter_at, BLOCK, SECOND, N, 1)
        if THIRD:
            cb = read_part(bias_ptr, parameter_at, LAST, THIRD, N, 1)
    a, small, usual, large = part_and_sums(
        x_ptr, x_at, residual_ptr, residual_at, sum_ptr, sum_at, C, 0, BLOCK, N, K, ROOT, ADD, BYTES
    )  # fmt: skip
    b, s, u, g = part_and_sums(
        x_ptr, x_at, residual_ptr, residual_at, sum_ptr, sum_at, C, BLOCK, SECOND, N, K, ROOT, ADD, BYTES
    )  # fmt: skip
    small, usual, large = small + s, usual + u, large + g
    if THIRD:
        c, s, u, g = part_and_sums(
            x_ptr, x_at, residual_ptr, residual_at, sum_ptr, sum_at, C, LAST, THIRD, N, K, ROOT, ADD, BYTES
        )  # fmt: skip
        small, usual, large = small + s, usual + u, large + g
    rstd, scale = inverse_root(small, usual, large, K, ROOT)
    finish_part(
        a, rstd, scale, aw, ab, y_ptr, y_at, T, 0, BLOCK,
        N, HAS_WEIGHT, HAS_BIAS, ZERO_CENTERED, ROUND_FIRST, BYTES,
    )  # fmt: skip
    finish_part(
        b, rstd, scale, bw, bb, y_ptr, y_at, T, BLOCK, SECOND,
        N, HAS_WEIGHT, HAS_BIAS, ZERO_CENTERED, ROUND_FIRST, BYTES,
    )  # fmt: skip
    if THIRD:
        finish_part(
            c, rstd, scale, cw, cb, y_ptr, y_at, T, LAST, THIRD,
            N, HAS_WEIGHT, HAS_BIAS, ZERO_CENTERED, ROUND_FIRST, BYTES,
        )  # fmt: skip
