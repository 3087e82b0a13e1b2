"""What the kernels share: where a row lies, how a tile of rows is read and written, and correctly rounded arithmetic.

A tile is [ROWS, BLOCK]. BLOCK is a power of two and at least N; elements beyond N are read as zero. Everything is
computed in float32, in float64 for float64 rows. Row offsets are 64-bit.
"""

import triton
import triton.language as tl

KEEP_AS_USUAL = tl.constexpr("")  # Triton 3.6 takes no plain string for a default
# Of what is read a second time: nothing needs it in the caches afterwards. It also stops the compiler from merging the
# two reads.
LAST_READ = tl.constexpr("evict_first")


@triton.jit
def row_offset(row, middle, inner, outer_stride, middle_stride, inner_stride, LEVELS: tl.constexpr):
    """A row's offset in elements, in up to three levels: ``inner`` rows a stride apart, ``middle`` such groups."""
    if LEVELS == 1:
        return row.to(tl.int64) * inner_stride
    offset = (row % inner).to(tl.int64) * inner_stride
    group = row // inner
    if LEVELS == 2:
        return offset + group.to(tl.int64) * middle_stride
    return offset + (group % middle).to(tl.int64) * middle_stride + (group // middle).to(tl.int64) * outer_stride


@triton.jit
def addresses(ptr, offset, cols, BYTES: tl.constexpr):
    """[ROWS, BLOCK] addresses. Every row begins at a multiple of BYTES, so that accesses become vectors."""
    return tl.multiple_of(ptr + offset, [BYTES])[:, None] + cols[None, :]


@triton.jit
def read(
    ptr, offset, cols, N: tl.constexpr, BLOCK: tl.constexpr, BYTES: tl.constexpr, KEEP: tl.constexpr = KEEP_AS_USUAL
):  # fmt: skip
    """A tile in its own dtype; KEEP is the caches' eviction policy."""
    if BLOCK == N:
        return tl.load(addresses(ptr, offset, cols, BYTES), eviction_policy=KEEP)
    return tl.load(addresses(ptr, offset, cols, BYTES), mask=(cols < N)[None, :], other=0, eviction_policy=KEEP)


@triton.jit
def write(ptr, offset, cols, value, inside, N: tl.constexpr, BLOCK: tl.constexpr, BYTES: tl.constexpr):
    """Write a tile, rounded to the dtype of ``ptr``; ``inside`` says which of its rows exist."""
    ROWS: tl.constexpr = value.shape[0]
    place = addresses(ptr, offset, cols, BYTES)
    value = value.to(ptr.dtype.element_ty)
    if BLOCK == N:
        if ROWS == 1:  # one program for each row
            tl.store(place, value)
        else:
            tl.store(place, value, mask=inside[:, None])
    else:
        tl.store(place, value, mask=inside[:, None] & (cols < N)[None, :])


@triton.jit
def read_parameter(ptr, row, heads, cols, HEADS: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr):
    """Gain or bias: [1, BLOCK], or [ROWS, BLOCK] if each head has its own."""
    place = ptr + cols[None, :]
    if HEADS:
        place += (row % heads)[:, None] * N
    if BLOCK == N:
        return tl.load(place)
    return tl.load(place, mask=(cols < N)[None, :], other=0)


@triton.jit
def first(x, cols, K: tl.constexpr, BLOCK: tl.constexpr):
    """The first K elements of each row, zeros for the others."""
    if K < BLOCK:
        return tl.where((cols < K)[None, :], x, 0.0)
    return x


@triton.jit
def power_of_two(largest):
    """The power of two that brings ``largest`` to [1, 2), from its exponent's bits; 1 if it is not finite."""
    if largest.dtype == tl.float64:
        exponent = largest.to(tl.int64, bitcast=True) >> 52
        inverse = tl.where(exponent == 2047, 1023, tl.minimum(tl.maximum(2046 - exponent, 1), 2045))
        return (inverse.to(tl.int64) << 52).to(tl.float64, bitcast=True)
    else:
        exponent = largest.to(tl.int32, bitcast=True) >> 23
        inverse = tl.where(exponent == 255, 127, tl.minimum(tl.maximum(254 - exponent, 1), 253))
        return (inverse.to(tl.int32) << 23).to(tl.float32, bitcast=True)


@triton.jit
def quotient(x, y):
    """x / y, correctly rounded: Triton's / of float32 is off by up to two units in the last place."""
    if x.dtype == tl.float64:
        return x / y
    else:
        return tl.div_rn(x, y)


@triton.jit
def reciprocal_root(x):
    """1/√x, each step correctly rounded: rsqrt's approximation is off by two units in the last place."""
    if x.dtype == tl.float64:
        return 1.0 / tl.sqrt(x)
    else:
        return tl.div_rn(1.0, tl.sqrt_rn(x))


@triton.jit
def gain(w, C: tl.constexpr, ZERO_CENTERED: tl.constexpr, ROUND_FIRST: tl.constexpr):
    """g in the computation dtype C: w, or 1 + w, which is rounded to w's own dtype where x̂ is rounded first."""
    g = w.to(C)
    if ZERO_CENTERED:
        g = 1.0 + g
        if ROUND_FIRST:
            g = g.to(w.dtype).to(C)
    return g
