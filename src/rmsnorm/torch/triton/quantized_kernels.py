"""The kernels of rms_norm_quantized.

Codes of float8_e4m3fn are made by integer arithmetic, so that chips without that conversion (sm_80) have them too.
"""

import triton
import triton.language as tl

from rmsnorm.torch.triton.pieces import looped_statistic, read_parameter_piece, read_piece, write_piece
from rmsnorm.torch.triton.rows import gain, quotient, read, read_parameter, row_offset, write
from rmsnorm.torch.triton.statistic import normalized, statistic


@triton.jit
def magnitude(y):
    """|y|, or infinity if y is not finite, so that a maximum cannot lose a NaN."""
    return tl.where(tl.abs(y) < float("inf"), tl.abs(y), float("inf"))


@triton.jit
def step(largest, INT8: tl.constexpr):
    """largest / M in float32; NaN if that is not finite."""
    MOST: tl.constexpr = 127.0 if INT8 else 448.0
    return tl.where(largest < float("inf"), quotient(largest, MOST), float("nan")).to(tl.float32)


@triton.jit
def encoded(y, scale, INT8: tl.constexpr):
    """round(y / scale), ties to even, as eight bits; 0 in rows without a scale."""
    MOST: tl.constexpr = 127.0 if INT8 else 448.0
    C: tl.constexpr = y.dtype
    known = (scale > 0) & (scale < float("inf"))
    code = quotient(tl.where(known, y, 0.0), tl.where(known, scale, 1.0).to(C))
    code = tl.minimum(tl.maximum(code, -MOST), MOST)
    if INT8:  # adding 1.5·2^23 (2^52) leaves no bits for a fraction
        SHIFT: tl.constexpr = 1.5 * 2.0**52 if C == tl.float64 else 1.5 * 2.0**23
        return ((code + SHIFT) - SHIFT).to(tl.int8)
    code = code.to(tl.float32)
    bits = code.to(tl.int32, bitcast=True)
    sign = (bits >> 24) & 0x80
    bits &= 0x7FFFFFFF
    # 20 of 23 bits of the fraction go, and the exponent's bias is 7 for 127; below 2^-6 steps are 2^-9.
    usual = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    small = ((tl.abs(code) * 512.0 + 8388608.0) - 8388608.0).to(tl.int32)
    return (sign | tl.where(bits < (121 << 23), small, usual)).to(tl.int8)


@triton.jit
def quantized_kernel(
    x_ptr, weight_ptr, codes_ptr, scale_ptr, rows, middle, inner, heads,
    x_outer, x_middle, x_inner, codes_outer, codes_middle, codes_inner,
    N: tl.constexpr, K: tl.constexpr, ROOT: tl.constexpr, HAS_WEIGHT: tl.constexpr, HEADS: tl.constexpr,
    INT8: tl.constexpr, LEVELS: tl.constexpr, BYTES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ROWS rows a program, each read once and held in registers."""
    C: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    cols = tl.arange(0, BLOCK)
    row = tl.program_id(0).to(rows.dtype) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    row = tl.minimum(row, rows - 1)  # the last tile reads its last row again
    x = read(x_ptr, row_offset(row, middle, inner, x_outer, x_middle, x_inner, LEVELS), cols, N, BLOCK, BYTES)
    if HAS_WEIGHT:  # read before the reductions below wait
        w = read_parameter(weight_ptr, row, heads, cols, HEADS, N, BLOCK)
    x = x.to(C)
    mean, rstd, scale = statistic(x, cols, N, K, ROOT, False, BLOCK, False)
    y = normalized(x, mean, rstd, scale, False)
    if HAS_WEIGHT:
        y = y * gain(w, C, False, False)
    found = magnitude(y)
    if BLOCK > N:  # elements beyond a row are 0·rstd, which is NaN if rstd is
        found = tl.where((cols < N)[None, :], found, 0.0)
    size = step(tl.max(found, axis=1), INT8)
    tl.store(scale_ptr + row, size, mask=inside)
    codes_at = row_offset(row, middle, inner, codes_outer, codes_middle, codes_inner, LEVELS)
    write(codes_ptr, codes_at, cols, encoded(y, size[:, None], INT8), inside, N, BLOCK, BYTES)


@triton.jit
def quantized_looped_kernel(
    x_ptr, weight_ptr, codes_ptr, scale_ptr, rows, middle, inner, heads,
    x_outer, x_middle, x_inner, codes_outer, codes_middle, codes_inner,
    N: tl.constexpr, K: tl.constexpr, ROOT: tl.constexpr, HAS_WEIGHT: tl.constexpr, HEADS: tl.constexpr,
    INT8: tl.constexpr, LEVELS: tl.constexpr, BYTES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row a program in pieces of BLOCK: the statistic, the largest result, the codes."""
    C: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    row = tl.program_id(0) + tl.arange(0, 1)
    x_at = row_offset(row, middle, inner, x_outer, x_middle, x_inner, LEVELS)
    codes_at = row_offset(row, middle, inner, codes_outer, codes_middle, codes_inner, LEVELS)
    _, rstd, scale = looped_statistic(x_ptr, x_at, C, N, K, ROOT, False, BLOCK, BYTES, 1)
    largest = tl.zeros([1, BLOCK], C)
    for start in range(0, N, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        y = read_piece(x_ptr, x_at, cols, N, N, BLOCK, BYTES).to(C) * scale * rstd
        if HAS_WEIGHT:
            y *= gain(read_parameter_piece(weight_ptr, row, heads, cols, HEADS, N, BLOCK), C, False, False)
        largest = tl.maximum(largest, tl.where((cols < N)[None, :], magnitude(y), 0.0))
    size = step(tl.max(largest, axis=1), INT8)
    tl.store(scale_ptr + row, size)
    for start in range(0, N, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        y = read_piece(x_ptr, x_at, cols, N, N, BLOCK, BYTES).to(C) * scale * rstd
        if HAS_WEIGHT:
            y *= gain(read_parameter_piece(weight_ptr, row, heads, cols, HEADS, N, BLOCK), C, False, False)
        write_piece(codes_ptr, codes_at, cols, encoded(y, size[:, None], INT8), N, BLOCK, BYTES)
