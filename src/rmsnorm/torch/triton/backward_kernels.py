"""The backward kernel of rows in registers, and the kernel that adds its programs' sums; what both kinds of row share.

The grid is persistent, and each program sums dweight and dbias of its rows. Program p serves head p % heads (all rows,
where one gain serves all), and every ``programs / heads``-th tile of that head. So the rows of a sum and their order
depend on sizes and the device alone, and no atomics are needed.
"""

import triton
import triton.language as tl

from rmsnorm.torch.triton.rows import LAST_READ, first, gain, read, read_parameter, row_offset, write
from rmsnorm.torch.triton.statistic import HIDE_32, normalized, statistic, statistic_and_projection


@triton.jit
def own_share(axis: tl.constexpr, rows, heads):
    """(the program, its head, its first tile, the distance to its next one, the rows of a head)."""
    program = tl.program_id(axis)
    return program, program % heads, program // heads, tl.num_programs(axis) // heads, rows // heads


@triton.jit
def add_partial(ptr, cols, value, fresh, N: tl.constexpr):
    """Set a program's row of partial sums if ``fresh``, else add to it."""
    tl.debug_barrier()  # a thread may read what another wrote last time
    place = ptr + cols[None, :]
    inside = (cols < N)[None, :]
    tl.store(place, tl.load(place, mask=inside & (not fresh), other=0.0) + value, mask=inside)


@triton.jit
def input_gradient(u, xhat, rstd, scale, along, level, LAYER: tl.constexpr):
    """(u − x̂ Σux̂/K − LAYER's Σu/N)·rstd·scale, x̂ being zero beyond the first K."""
    dx = u - xhat * along[:, None]
    if LAYER:
        dx -= level[:, None]
    return dx * rstd[:, None] * scale[:, None]


@triton.jit
def read_gain(
    ptr, head, heads, cols, C: tl.constexpr, ZERO_CENTERED: tl.constexpr, ROUND_FIRST: tl.constexpr,
    HEADS: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gain of one head, [1, BLOCK]."""
    w = read_parameter(ptr, head + tl.arange(0, 1), heads, cols, HEADS, N, BLOCK)
    return gain(w, C, ZERO_CENTERED, ROUND_FIRST)


@triton.jit
def through_gain(
    dy, g, ptr, head, heads, cols, ZERO_CENTERED: tl.constexpr, ROUND_FIRST: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HOLD: tl.constexpr, HEADS: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """u = dy ⊙ g; without HOLD the gain is read for it."""
    if HAS_WEIGHT:
        if not HOLD:
            g = read_gain(ptr, head, heads, cols, dy.dtype, ZERO_CENTERED, ROUND_FIRST, HEADS, N, BLOCK)
        return dy * g
    else:
        return dy


@triton.jit
def backward_kernel(
    x_ptr, dy_ptr, weight_ptr, plus_ptr, dx_ptr, dweight_ptr, dbias_ptr, rows, middle, inner, heads,
    x_outer, x_middle, x_inner, dy_outer, dy_middle, dy_inner,
    plus_outer, plus_middle, plus_inner, dx_outer, dx_middle, dx_inner,
    N: tl.constexpr, K: tl.constexpr, ROOT: tl.constexpr,
    LAYER: tl.constexpr, PLUS: tl.constexpr, HAS_WEIGHT: tl.constexpr, HEADS: tl.constexpr,
    DX: tl.constexpr, DWEIGHT: tl.constexpr, DBIAS: tl.constexpr,
    ZERO_CENTERED: tl.constexpr, ROUND_FIRST: tl.constexpr,
    LEVELS: tl.constexpr, BYTES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, LEAF: tl.constexpr,
    HOLD: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Tiles of ROWS rows in registers. Sums over LEAF tiles stay there, and then go to the program's partial row.

    Without HOLD, for the longest rows, only the sums stay there during the reductions. What a tile needs afterwards is
    read again, from the caches.
    """
    T: tl.constexpr = x_ptr.dtype.element_ty
    C: tl.constexpr = tl.float64 if T == tl.float64 else tl.float32
    # Beyond an RMS of 2^126, 1/RMS has 22 bits: enough for 16 bits. It saves two of an element's multiplications.
    ONE_FACTOR: tl.constexpr = T.primitive_bitwidth == 16 and ROOT >= HIDE_32 and not LAYER
    OWN: tl.constexpr = K if K < N else BLOCK  # of all of a row, what lies beyond it is zero already
    cols = tl.arange(0, BLOCK)
    program, head, own, step, tokens = own_share(0, rows, heads)
    tiles = tl.cdiv(tokens, ROWS)
    g = None
    if HAS_WEIGHT and HOLD:
        g = read_gain(weight_ptr, head, heads, cols, C, ZERO_CENTERED, ROUND_FIRST, HEADS, N, BLOCK)
    partial = program.to(tl.int64) * N
    for leaf in range(own, tiles, step * LEAF):
        dweight = tl.zeros([ROWS, BLOCK], C)
        dbias = tl.zeros([ROWS, BLOCK], C)
        for tile in tl.range(leaf, tl.minimum(leaf + step * LEAF, tiles), step, num_stages=STAGES):
            token = tile * ROWS + tl.arange(0, ROWS)
            inside = token < tokens
            row = tl.minimum(token, tokens - 1) * heads + head
            x_at = row_offset(row, middle, inner, x_outer, x_middle, x_inner, LEVELS)
            dy_at = row_offset(row, middle, inner, dy_outer, dy_middle, dy_inner, LEVELS)
            plus_at = row_offset(row, middle, inner, plus_outer, plus_middle, plus_inner, LEVELS)
            x = read(x_ptr, x_at, cols, N, BLOCK, BYTES).to(C)
            dy = read(dy_ptr, dy_at, cols, N, BLOCK, BYTES).to(C)
            if DX:
                u = through_gain(
                    dy, g, weight_ptr, head, heads, cols, ZERO_CENTERED, ROUND_FIRST, HAS_WEIGHT, HOLD, HEADS, N, BLOCK
                )
                mean, rstd, scale, along, level = statistic_and_projection(x, u, cols, N, K, ROOT, LAYER, BLOCK, HOLD)
            else:
                mean, rstd, scale = statistic(x, cols, N, K, ROOT, LAYER, BLOCK, HOLD)
            if not HOLD:
                x = read(x_ptr, x_at, cols, N, BLOCK, BYTES, LAST_READ).to(C)
                dy = read(dy_ptr, dy_at, cols, N, BLOCK, BYTES, LAST_READ).to(C)
            if ROWS > 1:
                dy = tl.where(inside[:, None], dy, 0.0)  # a row read again is not counted again
            if ONE_FACTOR:
                rstd = rstd * scale
                xhat = x * rstd[:, None]
            else:
                xhat = normalized(x, mean, rstd, scale, LAYER)
            if DWEIGHT:
                dweight += dy * (xhat.to(T).to(C) if ROUND_FIRST else xhat)
            if DBIAS:
                dbias += dy
            if DX:
                u = through_gain(
                    dy, g, weight_ptr, head, heads, cols, ZERO_CENTERED, ROUND_FIRST, HAS_WEIGHT, HOLD, HEADS, N, BLOCK
                )
                if ONE_FACTOR:
                    dx = (u - first(xhat, cols, OWN, BLOCK) * along[:, None]) * rstd[:, None]
                else:
                    dx = input_gradient(u, first(xhat, cols, OWN, BLOCK), rstd, scale, along, level, LAYER)
                if PLUS:
                    dx += read(plus_ptr, plus_at, cols, N, BLOCK, BYTES).to(C)
                write(
                    dx_ptr,
                    row_offset(row, middle, inner, dx_outer, dx_middle, dx_inner, LEVELS),
                    cols,
                    dx,
                    inside,
                    N,
                    BLOCK,
                    BYTES,
                )
        if DWEIGHT:
            add_partial(dweight_ptr + partial, cols, tl.sum(dweight, axis=0)[None, :], leaf == own, N)
        if DBIAS:
            add_partial(dbias_ptr + partial, cols, tl.sum(dbias, axis=0)[None, :], leaf == own, N)


@triton.jit
def finish_kernel(
    partial_ptr, dweight_ptr, dbias_ptr, parts, M, DWEIGHT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """Columns of the partial rows summed in the rows' order; the second axis of the grid is dweight, then dbias."""
    which = tl.program_id(1)
    cols = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = (cols < M)[None, :]
    start = partial_ptr + which.to(tl.int64) * parts * M
    total = tl.zeros([ROWS, BLOCK], partial_ptr.dtype.element_ty)
    for part in range(0, parts, ROWS):
        row = part + tl.arange(0, ROWS)
        place = start + row.to(tl.int64)[:, None] * M + cols[None, :]
        total += tl.load(place, mask=(row < parts)[:, None] & inside, other=0.0)
    total = tl.sum(total, axis=0)
    if DWEIGHT and which == 0:
        tl.store(dweight_ptr + cols, total.to(dweight_ptr.dtype.element_ty), mask=cols < M)
    else:
        tl.store(dbias_ptr + cols, total.to(dbias_ptr.dtype.element_ty), mask=cols < M)
