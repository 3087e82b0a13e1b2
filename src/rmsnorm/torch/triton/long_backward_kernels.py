"""The backward pass of rows too long for registers, in two kernels: first over rows, then over columns of many rows.

The first reads x and dy once (twice where there is a mean) and leaves a few numbers a row. The second has no reductions
along a row. Its programs keep a piece of the gain and its sums in registers while they pass over their rows.

In pRMSNorm only the gradients of a row's first K elements depend on the projection. So the first kernel reads those K
alone, the second leaves its columns' part of Σux̂, and a third makes the gradients of the first K. x and dy are read
once.
"""

import triton
import triton.language as tl

from rmsnorm.torch.triton.backward_kernels import add_partial, input_gradient, own_share
from rmsnorm.torch.triton.pieces import looped_statistic, read_parameter_piece, read_piece, write_piece
from rmsnorm.torch.triton.rows import addresses, gain, quotient, row_offset
from rmsnorm.torch.triton.statistic import inverse_root, normalized, projection, scaled, summed_both

FOUND = 5  # numbers of a row that the first kernel leaves to the second


@triton.jit
def read_u(
    dy_ptr, dy_at, weight_ptr, row, heads, cols, C: tl.constexpr, HAS_WEIGHT: tl.constexpr, HEADS: tl.constexpr,
    ZERO_CENTERED: tl.constexpr, ROUND_FIRST: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """A piece of u = dy ⊙ g in the computation dtype C."""
    u = read_piece(dy_ptr, dy_at, cols, N, N, BLOCK, BYTES).to(C)
    if HAS_WEIGHT:
        w = read_parameter_piece(weight_ptr, row, heads, cols, HEADS, N, BLOCK)
        u *= gain(w, C, ZERO_CENTERED, ROUND_FIRST)
    return u


@triton.jit
def rows_kernel(
    x_ptr, dy_ptr, weight_ptr, found_ptr, rows, middle, inner, heads,
    x_outer, x_middle, x_inner, dy_outer, dy_middle, dy_inner,
    N: tl.constexpr, K: tl.constexpr, ROOT: tl.constexpr, LAYER: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HEADS: tl.constexpr, DX: tl.constexpr,
    ZERO_CENTERED: tl.constexpr, ROUND_FIRST: tl.constexpr,
    LEVELS: tl.constexpr, BYTES: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One row a program: rstd, scale, Σux̂/K, and LAYER's mean and Σu/N, each in a row of ``found``."""
    C: tl.constexpr = found_ptr.dtype.element_ty
    row = tl.program_id(0) + tl.arange(0, 1)
    x_at = row_offset(row, middle, inner, x_outer, x_middle, x_inner, LEVELS)
    dy_at = row_offset(row, middle, inner, dy_outer, dy_middle, dy_inner, LEVELS)
    place = found_ptr + row
    count = rows.to(tl.int64)
    if LAYER or not DX:
        mean, rstd, scale = looped_statistic(x_ptr, x_at, C, N, K, ROOT, LAYER, BLOCK, BYTES, STAGES)
        mean, rstd, scale = mean.reshape([1]), rstd.reshape([1]), scale.reshape([1])
        if DX:
            along = tl.zeros([1, BLOCK], C)
            level = tl.zeros([1, BLOCK], C)
            for start in tl.range(0, N, BLOCK, num_stages=STAGES):
                cols = start + tl.arange(0, BLOCK)
                x = read_piece(x_ptr, x_at, cols, N, N, BLOCK, BYTES).to(C)
                u = read_u(
                    dy_ptr,
                    dy_at,
                    weight_ptr,
                    row,
                    heads,
                    cols,
                    C,
                    HAS_WEIGHT,
                    HEADS,
                    ZERO_CENTERED,
                    ROUND_FIRST,
                    N,
                    BLOCK,
                    BYTES,
                )
                along += u * normalized(x, mean, rstd, scale, LAYER)
                level += u
            tl.store(place + 2 * count, quotient(tl.sum(along, axis=1), N))
            tl.store(place + 4 * count, quotient(tl.sum(level, axis=1), N))
        if LAYER:
            tl.store(place + 3 * count, mean)
    else:
        small = tl.zeros([1, BLOCK], C)
        usual = tl.zeros([1, BLOCK], C)
        large = tl.zeros([1, BLOCK], C)
        small_u = tl.zeros([1, BLOCK], C)
        usual_u = tl.zeros([1, BLOCK], C)
        large_u = tl.zeros([1, BLOCK], C)
        for start in tl.range(0, N, BLOCK, num_stages=STAGES):
            cols = start + tl.arange(0, BLOCK)
            x = read_piece(x_ptr, x_at, cols, N, N, BLOCK, BYTES).to(C)
            u = read_u(
                dy_ptr,
                dy_at,
                weight_ptr,
                row,
                heads,
                cols,
                C,
                HAS_WEIGHT,
                HEADS,
                ZERO_CENTERED,
                ROUND_FIRST,
                N,
                BLOCK,
                BYTES,
            )
            a, b, c = scaled(x)
            small_u += a * u
            usual_u += b * u
            large_u += c * u
            if K < N:
                a, b, c = scaled(tl.where((cols < K)[None, :], x, 0.0))
            small += a * a
            usual += b * b
            large += c * c
        small, usual, large, small_u, usual_u, large_u = summed_both(
            small, usual, large, small_u, usual_u, large_u, ROOT
        )
        rstd, scale = inverse_root(small, usual, large, K, ROOT)
        tl.store(place + 2 * count, projection(small_u, usual_u, large_u, rstd, scale, K, ROOT))
    tl.store(place, rstd)
    tl.store(place + count, scale)


@triton.jit
def columns_kernel(
    x_ptr, dy_ptr, weight_ptr, plus_ptr, dx_ptr, dweight_ptr, dbias_ptr, found_ptr, part_ptr,
    rows, middle, inner, heads,
    x_outer, x_middle, x_inner, dy_outer, dy_middle, dy_inner,
    plus_outer, plus_middle, plus_inner, dx_outer, dx_middle, dx_inner,
    N: tl.constexpr, K: tl.constexpr, LAYER: tl.constexpr, PLUS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HEADS: tl.constexpr, DX: tl.constexpr, DWEIGHT: tl.constexpr, DBIAS: tl.constexpr,
    ZERO_CENTERED: tl.constexpr, ROUND_FIRST: tl.constexpr,
    SPLIT: tl.constexpr,
    LEVELS: tl.constexpr, BYTES: tl.constexpr, BLOCK: tl.constexpr, LEAF: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """BLOCK columns (the grid's first axis) of the rows that program p of ``backward_kernel`` has (its second).

    With SPLIT ``part`` gets a row for each block of columns, of its parts of Σux̂, and the first K of dx are not final.
    """
    T: tl.constexpr = x_ptr.dtype.element_ty
    C: tl.constexpr = found_ptr.dtype.element_ty
    cols = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    program, head, own, step, tokens = own_share(1, rows, heads)
    count = rows.to(tl.int64)
    if HAS_WEIGHT:
        w = read_parameter_piece(weight_ptr, head + tl.arange(0, 1), heads, cols, HEADS, N, BLOCK)
        g = gain(w, C, ZERO_CENTERED, ROUND_FIRST)
    partial = program.to(tl.int64) * N
    for leaf in range(own, tokens, step * LEAF):
        dweight = tl.zeros([1, BLOCK], C)
        dbias = tl.zeros([1, BLOCK], C)
        for token in tl.range(leaf, tl.minimum(leaf + step * LEAF, tokens), step, num_stages=STAGES):
            row = token * heads + head + tl.arange(0, 1)
            x_at = row_offset(row, middle, inner, x_outer, x_middle, x_inner, LEVELS)
            dy_at = row_offset(row, middle, inner, dy_outer, dy_middle, dy_inner, LEVELS)
            x = read_piece(x_ptr, x_at, cols, N, N, BLOCK, BYTES).to(C)
            dy = read_piece(dy_ptr, dy_at, cols, N, N, BLOCK, BYTES).to(C)
            place = found_ptr + row
            rstd, scale = tl.load(place), tl.load(place + count)
            mean, along, level = rstd, rstd, rstd
            if LAYER:
                mean = tl.load(place + 3 * count)
            xhat = normalized(x, mean, rstd, scale, LAYER)
            if DWEIGHT:
                dweight += dy * (xhat.to(T).to(C) if ROUND_FIRST else xhat)
            if DBIAS:
                dbias += dy
            if DX:
                u = dy
                if HAS_WEIGHT:
                    u = dy * g
                if SPLIT:
                    tl.store(part_ptr + tl.program_id(0) * count + row, tl.sum(u * xhat, axis=1))
                    dx = u * rstd[:, None] * scale[:, None]
                else:
                    along = tl.load(place + 2 * count)
                    if LAYER:
                        level = tl.load(place + 4 * count)
                    if K < N:
                        xhat = tl.where((cols < K)[None, :], xhat, 0.0)
                    dx = input_gradient(u, xhat, rstd, scale, along, level, LAYER)
                if PLUS:
                    plus_at = row_offset(row, middle, inner, plus_outer, plus_middle, plus_inner, LEVELS)
                    dx += read_piece(plus_ptr, plus_at, cols, N, N, BLOCK, BYTES).to(C)
                dx_at = row_offset(row, middle, inner, dx_outer, dx_middle, dx_inner, LEVELS)
                write_piece(dx_ptr, dx_at, cols, dx, N, BLOCK, BYTES)
        if DWEIGHT:
            add_partial(dweight_ptr + partial, cols, dweight, leaf == own, N)
        if DBIAS:
            add_partial(dbias_ptr + partial, cols, dbias, leaf == own, N)


@triton.jit
def head_kernel(
    x_ptr, dy_ptr, weight_ptr, plus_ptr, dx_ptr, found_ptr, part_ptr, rows, middle, inner, heads,
    x_outer, x_middle, x_inner, dy_outer, dy_middle, dy_inner,
    plus_outer, plus_middle, plus_inner, dx_outer, dx_middle, dx_inner,
    N: tl.constexpr, K: tl.constexpr, PLUS: tl.constexpr, HAS_WEIGHT: tl.constexpr, HEADS: tl.constexpr,
    ZERO_CENTERED: tl.constexpr, ROUND_FIRST: tl.constexpr, PIECES: tl.constexpr, PARTS: tl.constexpr,
    LEVELS: tl.constexpr, BYTES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A row a program: the gradients of its first K elements, from the PIECES parts of Σux̂ that there are."""
    C: tl.constexpr = found_ptr.dtype.element_ty
    row = tl.program_id(0) + tl.arange(0, 1)
    count = rows.to(tl.int64)
    piece = tl.arange(0, PARTS)
    parts = tl.load(part_ptr + piece[None, :] * count + row[:, None], mask=(piece < PIECES)[None, :], other=0.0)
    along = quotient(tl.sum(parts, axis=1), K)
    rstd, scale = tl.load(found_ptr + row), tl.load(found_ptr + count + row)
    cols = tl.arange(0, BLOCK)
    inside = (cols < K)[None, :]
    x_at = row_offset(row, middle, inner, x_outer, x_middle, x_inner, LEVELS)
    dy_at = row_offset(row, middle, inner, dy_outer, dy_middle, dy_inner, LEVELS)
    xhat = normalized(read_piece(x_ptr, x_at, cols, K, N, BLOCK, BYTES).to(C), rstd, rstd, scale, False)
    u = read_piece(dy_ptr, dy_at, cols, K, N, BLOCK, BYTES).to(C)
    if HAS_WEIGHT:
        place = weight_ptr + cols[None, :]
        if HEADS:
            place += (row % heads)[:, None] * N
        u *= gain(tl.load(place, mask=inside, other=0.0), C, ZERO_CENTERED, ROUND_FIRST)
    dx = input_gradient(u, xhat, rstd, scale, along, along, False)
    if PLUS:
        plus_at = row_offset(row, middle, inner, plus_outer, plus_middle, plus_inner, LEVELS)
        dx += read_piece(plus_ptr, plus_at, cols, K, N, BLOCK, BYTES).to(C)
    dx_at = row_offset(row, middle, inner, dx_outer, dx_middle, dx_inner, LEVELS)
    tl.store(addresses(dx_ptr, dx_at, cols, BYTES), dx.to(dx_ptr.dtype.element_ty), mask=inside)
