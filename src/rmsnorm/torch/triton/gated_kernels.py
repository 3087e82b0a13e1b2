"""The gated norm's kernels. Rows are held in registers, where a group, or a row of a state-space model, fits."""

import triton
import triton.language as tl

from rmsnorm.torch.triton.backward_kernels import add_partial, own_share, read_gain
from rmsnorm.torch.triton.rows import LAST_READ, first, gain, read, read_parameter, row_offset, write
from rmsnorm.torch.triton.statistic import normalized, statistic, statistic_and_projection


@triton.jit
def exponential(x):
    """e^x for x ≤ 0; in float32 as 2^n e^r with x = n log 2 + r: the hardware's 2^(x log2 e) is off by |x| ulp."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        x = tl.maximum(x, -120.0, propagate_nan=tl.PropagateNan.ALL)  # e^-120 is 0
        n = (x * 1.4426950408889634 + 12582912.0) - 12582912.0  # 1.5·2^23: rounds to an integer
        r = (x - n * 0.693359375) + n * 2.12194440054690583e-4  # log 2 in 9 bits, so that the first product is exact
        # 2^n in two exact factors: it may be subnormal.
        power = ((n.to(tl.int32) + (127 + 64)) << 23).to(tl.float32, bitcast=True)
        return tl.exp2(r * 1.4426950408889634) * power * 2.0**-64


@triton.jit
def reciprocal(x):
    """1/x of numbers from 1 to 2; in float32 a step of Newton's after Triton's /, since div_rn's registers spill."""
    r = 1.0 / x
    if x.dtype != tl.float64:
        r = tl.fma(r, tl.fma(-x, r, 1.0), r)
    return r


@triton.jit
def silu(z):
    """z σ(z) and its derivative σ(z) (1 + z σ(−z)), σ(z) = 1/(1 + e^-z), from e^-|z|."""
    t = exponential(-tl.abs(z))
    inverse = reciprocal(1.0 + t)
    at = tl.where(z < 0, t, 1.0) * inverse
    rest = tl.where(z < 0, 1.0, t) * inverse
    return z * at, at * (1.0 + z * rest)


@triton.jit
def around_gate(x, z, dy, NORM_FIRST: tl.constexpr):
    """(silu(z), its slope, h, v): h is what is normalised, v the gradient of its norm."""
    s, slope = silu(z)
    if NORM_FIRST:
        return s, slope, x, dy * s
    else:
        return s, slope, x * s, dy


@triton.jit
def gated_kernel(
    x_ptr, gate_ptr, weight_ptr, y_ptr, rows, middle, inner, heads,
    x_outer, x_middle, x_inner, gate_outer, gate_middle, gate_inner, y_outer, y_middle, y_inner,
    N: tl.constexpr, K: tl.constexpr, ROOT: tl.constexpr, NORM_FIRST: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    HEADS: tl.constexpr, LEVELS: tl.constexpr, BYTES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ROWS rows a program, each read once and held in registers."""
    C: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    cols = tl.arange(0, BLOCK)
    row = tl.program_id(0).to(rows.dtype) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    row = tl.minimum(row, rows - 1)  # the last tile reads its last row again
    gate_at = row_offset(row, middle, inner, gate_outer, gate_middle, gate_inner, LEVELS)
    y_at = row_offset(row, middle, inner, y_outer, y_middle, y_inner, LEVELS)
    x = read(x_ptr, row_offset(row, middle, inner, x_outer, x_middle, x_inner, LEVELS), cols, N, BLOCK, BYTES)
    z = read(gate_ptr, gate_at, cols, N, BLOCK, BYTES)
    if HAS_WEIGHT:  # read before the reductions below wait
        w = read_parameter(weight_ptr, row, heads, cols, HEADS, N, BLOCK)
    h = x.to(C)
    s, _ = silu(z.to(C))
    if not NORM_FIRST:
        h = h * s
    mean, rstd, scale = statistic(h, cols, N, K, ROOT, False, BLOCK, False)
    y = normalized(h, mean, rstd, scale, False)
    if HAS_WEIGHT:
        y = y * gain(w, C, False, False)
    if NORM_FIRST:
        y = y * s
    write(y_ptr, y_at, cols, y, inside, N, BLOCK, BYTES)


@triton.jit
def gated_backward_kernel(
    x_ptr, gate_ptr, weight_ptr, dy_ptr, dx_ptr, dz_ptr, dweight_ptr, rows, middle, inner, heads,
    x_outer, x_middle, x_inner, gate_outer, gate_middle, gate_inner, dy_outer, dy_middle, dy_inner,
    dx_outer, dx_middle, dx_inner, dz_outer, dz_middle, dz_inner,
    N: tl.constexpr, K: tl.constexpr, ROOT: tl.constexpr, NORM_FIRST: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    DWEIGHT: tl.constexpr, HEADS: tl.constexpr, LEVELS: tl.constexpr, BYTES: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, LEAF: tl.constexpr, HOLD: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Grid, sums, HOLD and STAGES are those of ``backward_kernel``, whose gain is read again with the rest."""
    C: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    cols = tl.arange(0, BLOCK)
    program, head, own, step, tokens = own_share(0, rows, heads)
    tiles = tl.cdiv(tokens, ROWS)
    partial = program.to(tl.int64) * N
    for leaf in range(own, tiles, step * LEAF):
        dweight = tl.zeros([ROWS, BLOCK], C)
        for tile in tl.range(leaf, tl.minimum(leaf + step * LEAF, tiles), step, num_stages=STAGES):
            token = tile * ROWS + tl.arange(0, ROWS)
            inside = token < tokens
            row = tl.minimum(token, tokens - 1) * heads + head
            x_at = row_offset(row, middle, inner, x_outer, x_middle, x_inner, LEVELS)
            gate_at = row_offset(row, middle, inner, gate_outer, gate_middle, gate_inner, LEVELS)
            dy_at = row_offset(row, middle, inner, dy_outer, dy_middle, dy_inner, LEVELS)
            x = read(x_ptr, x_at, cols, N, BLOCK, BYTES).to(C)
            z = read(gate_ptr, gate_at, cols, N, BLOCK, BYTES).to(C)
            dy = read(dy_ptr, dy_at, cols, N, BLOCK, BYTES).to(C)
            s, slope, h, v = around_gate(x, z, dy, NORM_FIRST)
            u = v
            if HAS_WEIGHT:
                g = read_gain(weight_ptr, head, heads, cols, C, False, False, HEADS, N, BLOCK)
                u = v * g
            mean, rstd, scale, along, _ = statistic_and_projection(h, u, cols, N, K, ROOT, False, BLOCK, False)
            if not HOLD:
                x = read(x_ptr, x_at, cols, N, BLOCK, BYTES, LAST_READ).to(C)
                z = read(gate_ptr, gate_at, cols, N, BLOCK, BYTES, LAST_READ).to(C)
                dy = read(dy_ptr, dy_at, cols, N, BLOCK, BYTES, LAST_READ).to(C)
                s, slope, h, v = around_gate(x, z, dy, NORM_FIRST)
            hhat = normalized(h, mean, rstd, scale, False)
            if DWEIGHT:
                counted = v * hhat
                if ROWS > 1:
                    counted = tl.where(inside[:, None], counted, 0.0)  # a row read again is not counted again
                dweight += counted
            dh, y = v, hhat
            if HAS_WEIGHT:
                if not HOLD:
                    g = read_gain(weight_ptr, head, heads, cols, C, False, False, HEADS, N, BLOCK)
                dh = v * g
                y = hhat * g
            dh = (dh - first(hhat, cols, K, BLOCK) * along[:, None]) * rstd[:, None] * scale[:, None]
            if NORM_FIRST:
                dx = dh
                dz = dy * y * slope
            else:
                dx = dh * s
                dz = dh * x * slope
            dx_at = row_offset(row, middle, inner, dx_outer, dx_middle, dx_inner, LEVELS)
            dz_at = row_offset(row, middle, inner, dz_outer, dz_middle, dz_inner, LEVELS)
            write(dx_ptr, dx_at, cols, dx, inside, N, BLOCK, BYTES)
            write(dz_ptr, dz_at, cols, dz, inside, N, BLOCK, BYTES)
        if DWEIGHT:
            add_partial(dweight_ptr + partial, cols, tl.sum(dweight, axis=0)[None, :], leaf == own, N)
