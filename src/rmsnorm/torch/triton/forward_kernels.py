"""The forward kernels of the plain norms: one holds its rows in registers, one sweeps rows too long for that.

pRMSNorm's long rows have a third, whose programs take the statistic from the row's head and serve some columns each.
"""

import triton
import triton.language as tl

from rmsnorm.torch.triton.pieces import looped_statistic, read_parameter_piece, read_piece, write_piece
from rmsnorm.torch.triton.rows import LAST_READ, gain, read, read_parameter, row_offset, write
from rmsnorm.torch.triton.statistic import normalized, rms, statistic


@triton.jit
def affine(
    xhat, g, b, T: tl.constexpr, Y: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, ROUND_FIRST: tl.constexpr,
):  # fmt: skip
    """ŷ = x̂ ⊙ g + b; with ROUND_FIRST x̂ is rounded to the input's dtype T and the product to the output's, Y."""
    C: tl.constexpr = xhat.dtype
    if ROUND_FIRST:
        xhat = xhat.to(T).to(C)
    if HAS_WEIGHT:
        xhat = xhat * g
        if ROUND_FIRST:
            xhat = xhat.to(Y).to(C)
    if HAS_BIAS:
        xhat = xhat + b
    return xhat


@triton.jit
def forward_tile(
    row, inside, cols, w, b, x_ptr, residual_ptr, weight_ptr, bias_ptr, y_ptr, sum_ptr, middle, inner, heads,
    x_outer, x_middle, x_inner, residual_outer, residual_middle, residual_inner,
    y_outer, y_middle, y_inner, sum_outer, sum_middle, sum_inner,
    N: tl.constexpr, K: tl.constexpr, ROOT: tl.constexpr,
    LAYER: tl.constexpr, ADD: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HEADS: tl.constexpr,
    ZERO_CENTERED: tl.constexpr, ROUND_FIRST: tl.constexpr,
    LEVELS: tl.constexpr, BYTES: tl.constexpr, BLOCK: tl.constexpr, KNOWN: tl.constexpr,
):  # fmt: skip
    """These rows, read, normalised and written. ``w`` and ``b`` are gain and bias if they are KNOWN, else read here."""
    T: tl.constexpr = x_ptr.dtype.element_ty
    C: tl.constexpr = tl.float64 if T == tl.float64 else tl.float32
    x = read(x_ptr, row_offset(row, middle, inner, x_outer, x_middle, x_inner, LEVELS), cols, N, BLOCK, BYTES)
    if ADD:
        residual = read(
            residual_ptr,
            row_offset(row, middle, inner, residual_outer, residual_middle, residual_inner, LEVELS),
            cols,
            N,
            BLOCK,
            BYTES,
        )
    g, shift = None, None
    if HAS_WEIGHT and not KNOWN:  # read before the reductions below wait
        w = read_parameter(weight_ptr, row, heads, cols, HEADS, N, BLOCK)
    if HAS_BIAS and not KNOWN:
        b = read_parameter(bias_ptr, row, heads, cols, HEADS, N, BLOCK)
    x = x.to(C)
    if ADD:
        x = (x + residual.to(C)).to(T)
        write(
            sum_ptr,
            row_offset(row, middle, inner, sum_outer, sum_middle, sum_inner, LEVELS),
            cols,
            x,
            inside,
            N,
            BLOCK,
            BYTES,
        )
        x = x.to(C)
    mean, rstd, scale = statistic(x, cols, N, K, ROOT, LAYER, BLOCK, True)
    xhat = normalized(x, mean, rstd, scale, LAYER)
    if HAS_WEIGHT:
        g = gain(w, C, ZERO_CENTERED, ROUND_FIRST)
    if HAS_BIAS:
        shift = b.to(C)
    y = affine(xhat, g, shift, T, y_ptr.dtype.element_ty, HAS_WEIGHT, HAS_BIAS, ROUND_FIRST)
    write(y_ptr, row_offset(row, middle, inner, y_outer, y_middle, y_inner, LEVELS), cols, y, inside, N, BLOCK, BYTES)


@triton.jit
def forward_kernel(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, y_ptr, sum_ptr, rows, middle, inner, heads,
    x_outer, x_middle, x_inner, residual_outer, residual_middle, residual_inner,
    y_outer, y_middle, y_inner, sum_outer, sum_middle, sum_inner,
    N: tl.constexpr, K: tl.constexpr, ROOT: tl.constexpr,
    LAYER: tl.constexpr, ADD: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HEADS: tl.constexpr,
    ZERO_CENTERED: tl.constexpr, ROUND_FIRST: tl.constexpr,
    LEVELS: tl.constexpr, BYTES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ROWS rows a program, each read once and held in registers."""
    row = tl.program_id(0).to(rows.dtype) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    row = tl.minimum(row, rows - 1)  # the last tile reads its last row again
    forward_tile(
        row, inside, tl.arange(0, BLOCK), None, None,
        x_ptr, residual_ptr, weight_ptr, bias_ptr, y_ptr, sum_ptr, middle, inner, heads,
        x_outer, x_middle, x_inner, residual_outer, residual_middle, residual_inner,
        y_outer, y_middle, y_inner, sum_outer, sum_middle, sum_inner,
        N, K, ROOT, LAYER, ADD, HAS_WEIGHT, HAS_BIAS, HEADS, ZERO_CENTERED, ROUND_FIRST, LEVELS, BYTES, BLOCK, False,
    )  # fmt: skip


@triton.jit
def forward_persistent_kernel(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, y_ptr, sum_ptr, rows, middle, inner, heads,
    x_outer, x_middle, x_inner, residual_outer, residual_middle, residual_inner,
    y_outer, y_middle, y_inner, sum_outer, sum_middle, sum_inner,
    N: tl.constexpr, K: tl.constexpr, ROOT: tl.constexpr,
    LAYER: tl.constexpr, ADD: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HEADS: tl.constexpr,
    ZERO_CENTERED: tl.constexpr, ROUND_FIRST: tl.constexpr,
    LEVELS: tl.constexpr, BYTES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """As forward_kernel, by as many programs as are resident: the gain stays, and the next tile is copied ahead."""
    cols = tl.arange(0, BLOCK)
    w, b = None, None
    if HAS_WEIGHT and not HEADS:
        w = read_parameter(weight_ptr, cols, heads, cols, False, N, BLOCK)
    if HAS_BIAS and not HEADS:
        b = read_parameter(bias_ptr, cols, heads, cols, False, N, BLOCK)
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0), num_stages=STAGES):
        row = tile * ROWS + tl.arange(0, ROWS)
        inside = row < rows
        row = tl.minimum(row, rows - 1)
        forward_tile(
            row, inside, cols, w, b,
            x_ptr, residual_ptr, weight_ptr, bias_ptr, y_ptr, sum_ptr, middle, inner, heads,
            x_outer, x_middle, x_inner, residual_outer, residual_middle, residual_inner,
            y_outer, y_middle, y_inner, sum_outer, sum_middle, sum_inner,
            N, K, ROOT, LAYER, ADD, HAS_WEIGHT, HAS_BIAS, HEADS, ZERO_CENTERED, ROUND_FIRST,
            LEVELS, BYTES, BLOCK, not HEADS,
        )  # fmt: skip


@triton.jit
def forward_looped_kernel(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, y_ptr, sum_ptr, rows, middle, inner, heads,
    x_outer, x_middle, x_inner, residual_outer, residual_middle, residual_inner,
    y_outer, y_middle, y_inner, sum_outer, sum_middle, sum_inner,
    N: tl.constexpr, K: tl.constexpr, ROOT: tl.constexpr,
    LAYER: tl.constexpr, ADD: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HEADS: tl.constexpr,
    ZERO_CENTERED: tl.constexpr, ROUND_FIRST: tl.constexpr,
    LEVELS: tl.constexpr, BYTES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One row a program in pieces of BLOCK: the sum with ADD, the statistic, then the elements.

    Pieces are copied ahead for the statistic, which waits for memory. The elements come from the second cache level;
    copying them ahead with the gain would take up to 192 KB, so that one program has a multiprocessor for itself.
    """
    T: tl.constexpr = x_ptr.dtype.element_ty
    C: tl.constexpr = tl.float64 if T == tl.float64 else tl.float32
    row = tl.program_id(0) + tl.arange(0, 1)
    x_at = row_offset(row, middle, inner, x_outer, x_middle, x_inner, LEVELS)
    y_at = row_offset(row, middle, inner, y_outer, y_middle, y_inner, LEVELS)
    if ADD:
        residual_at = row_offset(row, middle, inner, residual_outer, residual_middle, residual_inner, LEVELS)
        sum_at = row_offset(row, middle, inner, sum_outer, sum_middle, sum_inner, LEVELS)
        for start in range(0, N, BLOCK):
            cols = start + tl.arange(0, BLOCK)
            x = read_piece(x_ptr, x_at, cols, N, N, BLOCK, BYTES).to(C)
            x += read_piece(residual_ptr, residual_at, cols, N, N, BLOCK, BYTES).to(C)
            write_piece(sum_ptr, sum_at, cols, x, N, BLOCK, BYTES)
        tl.debug_barrier()  # what one thread has written another reads below
        x_ptr, x_at = sum_ptr, sum_at
    mean, rstd, scale = looped_statistic(x_ptr, x_at, C, N, K, ROOT, LAYER, BLOCK, BYTES, STAGES)
    for start in range(0, N, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        x = read_piece(x_ptr, x_at, cols, N, N, BLOCK, BYTES, LAST_READ).to(C) * scale
        if LAYER:
            x -= mean
        g, b = None, None
        if HAS_WEIGHT:
            w = read_parameter_piece(weight_ptr, row, heads, cols, HEADS, N, BLOCK)
            g = gain(w, C, ZERO_CENTERED, ROUND_FIRST)
        if HAS_BIAS:
            b = read_parameter_piece(bias_ptr, row, heads, cols, HEADS, N, BLOCK).to(C)
        y = affine(x * rstd, g, b, T, y_ptr.dtype.element_ty, HAS_WEIGHT, HAS_BIAS, ROUND_FIRST)
        write_piece(y_ptr, y_at, cols, y, N, BLOCK, BYTES)


@triton.jit
def read_sum(
    x_ptr, x_at, residual_ptr, residual_at, cols, C: tl.constexpr,
    ADD: tl.constexpr, LIMIT: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """A piece of x or, with ADD, of x + residual rounded to their dtype."""
    x = read_piece(x_ptr, x_at, cols, LIMIT, N, BLOCK, BYTES)
    if ADD:
        residual = read_piece(residual_ptr, residual_at, cols, LIMIT, N, BLOCK, BYTES)
        x = (x.to(C) + residual.to(C)).to(x.dtype)
    return x.to(C)


@triton.jit
def forward_stream_kernel(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, y_ptr, sum_ptr, rows, middle, inner, heads,
    x_outer, x_middle, x_inner, residual_outer, residual_middle, residual_inner,
    y_outer, y_middle, y_inner, sum_outer, sum_middle, sum_inner,
    N: tl.constexpr, K: tl.constexpr, ROOT: tl.constexpr,
    ADD: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HEADS: tl.constexpr,
    ZERO_CENTERED: tl.constexpr, ROUND_FIRST: tl.constexpr, PIECES: tl.constexpr, HEAD: tl.constexpr,
    LEVELS: tl.constexpr, BYTES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One of PIECES pieces of a row a program: the statistic of the first K of HEAD elements, then BLOCK columns.

    Outputs must not overlap inputs: the other programs of the row read its head, too.
    """
    T: tl.constexpr = x_ptr.dtype.element_ty
    C: tl.constexpr = tl.float64 if T == tl.float64 else tl.float32
    LIMIT: tl.constexpr = min(N, (K + 15) // 16 * 16)  # whole vectors; what lies beyond K is left out below
    row = tl.program_id(0) // PIECES + tl.arange(0, 1)
    cols = tl.program_id(0) % PIECES * BLOCK + tl.arange(0, BLOCK)
    heading = tl.arange(0, HEAD)
    x_at = row_offset(row, middle, inner, x_outer, x_middle, x_inner, LEVELS)
    residual_at = row_offset(row, middle, inner, residual_outer, residual_middle, residual_inner, LEVELS)
    head = read_sum(x_ptr, x_at, residual_ptr, residual_at, heading, C, ADD, LIMIT, N, HEAD, BYTES)
    x = read_sum(x_ptr, x_at, residual_ptr, residual_at, cols, C, ADD, N, N, BLOCK, BYTES)
    g, b = None, None
    if HAS_WEIGHT:  # read before the reduction waits
        w = read_parameter_piece(weight_ptr, row, heads, cols, HEADS, N, BLOCK)
        g = gain(w, C, ZERO_CENTERED, ROUND_FIRST)
    if HAS_BIAS:
        b = read_parameter_piece(bias_ptr, row, heads, cols, HEADS, N, BLOCK).to(C)
    if ADD:
        sum_at = row_offset(row, middle, inner, sum_outer, sum_middle, sum_inner, LEVELS)
        write_piece(sum_ptr, sum_at, cols, x, N, BLOCK, BYTES)
    rstd, scale = rms(head, heading, N, K, ROOT, HEAD, True)
    y = affine(
        normalized(x, rstd, rstd, scale, False), g, b, T, y_ptr.dtype.element_ty, HAS_WEIGHT, HAS_BIAS, ROUND_FIRST
    )
    y_at = row_offset(row, middle, inner, y_outer, y_middle, y_inner, LEVELS)
    write_piece(y_ptr, y_at, cols, y, N, BLOCK, BYTES)
