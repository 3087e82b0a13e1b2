"""How the kernels are launched: pure functions of a row's length and dtype, decided once and for all.

Nothing is tuned at run time, and the number of rows changes nothing but the grid: a row's sum is taken in the order
that its length gives. The register counts that these choices are held to: docs/gpu.md, and tests/test_triton_compile.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

VECTOR = 16  # bytes that a thread reads or writes at once
REGISTERS = 65536  # of a multiprocessor
LEAF = 64  # tiles whose gradients of gain and bias are summed in registers before they go to memory


@dataclass(frozen=True)
class Choice:
    """One way to launch a kernel.

    Attributes:
        block: elements of a row that a program holds at once, a power of two: all of it, or a piece if ``looped``.
        rows: rows that a program holds at once.
        warps: of a program.
        looped: whether a row is swept in pieces because it does not fit into registers.
        hold: backward: whether what a tile needs after its reductions stays in registers meanwhile.
        programs: backward: resident on a multiprocessor, and so many times their number is the grid.
        registers: what a thread may take for that. Told of no limit, NVIDIA's assembler spills a few bytes to
            get by with less than it may have.
    """

    block: int
    rows: int
    warps: int
    looped: bool = False
    hold: bool = True
    programs: int = 0
    registers: int | None = None


def power_of_two(n: int) -> int:
    """The next one, 16 at least: shorter blocks make no better use of a warp."""
    return 1 << max(4, (n - 1).bit_length())


def _tile(block: int, each: int, itemsize: int, warp_size: int) -> tuple[int, int]:
    """(rows, threads) for rows of ``block`` elements, ``each`` of them a thread.

    A row that a warp reads with one vector a thread is reduced by shuffles alone: four warps, each with rows of its
    own, make a program that amortises the read of the gain. Longer rows that still fit a warp get one warp, so that
    none waits at a barrier; the others as many threads as they need.
    """
    if block * itemsize <= warp_size * VECTOR:
        return 128 * each // block, 128
    if block <= warp_size * each:
        return warp_size * each // block, warp_size
    return 1, block // each


@lru_cache
def forward(n: int, itemsize: int, warp_size: int = 32) -> Choice:
    """64 bytes of x a thread: four vectors in flight, about 80 registers with the gain; twice that for the longest.

    A multiprocessor that holds some 800 such threads has about 50 KiB in flight. To keep an H100's 3.35 TB/s busy over
    a latency of 700 ns it needs 18.
    """
    block, each = power_of_two(n), 64 // itemsize
    longest = 16384 if itemsize <= 4 else 4096
    if block > longest:  # 128 bytes of float32 a thread at 512 threads is the most that does not spill
        return Choice(block=8192 if itemsize <= 4 else 4096, rows=1, warps=512 // warp_size, looped=True)
    rows, threads = _tile(block, each, itemsize, warp_size)
    return Choice(block=block, rows=rows, warps=min(threads, 512) // warp_size)


def _resident(choice: Choice, warp_size: int) -> Choice:
    return replace(choice, registers=min(255, REGISTERS // (choice.programs * choice.warps * warp_size)))


@lru_cache
def backward(n: int, itemsize: int, centred: bool = False, sums: int = 1, warp_size: int = 32) -> Choice:
    """16 elements a thread (4 in float64): x, dy, the gain and the running sums are 64 of at most 128 registers.

    So 512 threads fit a multiprocessor whatever their number a program, which makes the grid. Rows of 16384 in 16 bits
    do with 255 registers in 8 warps, if x, dy and the gain are read again after the reductions, and that only with
    one running sum; with more, in float32, and beyond, a row is swept in pieces and the sums live in memory.
    """
    block, each = power_of_two(n), 16 if itemsize <= 4 else 4
    if itemsize == 2 and block == 16384 and sums < 2 and not centred:
        return _resident(Choice(block=block, rows=1, warps=8, hold=False, programs=1), warp_size)
    if block > 512 * each:
        threads = 128 if itemsize == 8 else 256
        looped = Choice(block=8192 // itemsize, rows=1, warps=threads // warp_size, looped=True, programs=1)
        return _resident(looped, warp_size)
    rows, threads = _tile(block, each, itemsize, warp_size)
    if rows > 1 and (centred or sums > 1):
        rows //= 2  # two running sums for each
    return _resident(Choice(block=block, rows=rows, warps=threads // warp_size, programs=512 // threads), warp_size)


@lru_cache
def quantized(n: int, itemsize: int, warp_size: int = 32) -> Choice:
    """As forward, but a looped row's threads may have all registers there are: told of no limit, 64 and a spill."""
    choice = forward(n, itemsize, warp_size)
    return replace(choice, registers=REGISTERS // (choice.warps * warp_size)) if choice.looped else choice


@lru_cache
def gated_forward(n: int, itemsize: int, warp_size: int = 32) -> Choice | None:
    """Half as many elements a thread as a plain norm has: x and the gate are held. None where a row does not fit.

    The longest have as many. In float64 the assembler has to be told that 128 registers are there, or spills at 64.
    """
    block, each = power_of_two(n), 32 // itemsize
    if block > 512 * 2 * each:
        return None
    rows, threads = _tile(block, each, itemsize, warp_size)
    registers = 128 if itemsize == 8 else None
    return Choice(block=block, rows=rows, warps=min(threads, 512) // warp_size, registers=registers)


@lru_cache
def gated_backward(n: int, itemsize: int, warp_size: int = 32) -> Choice | None:
    """8 elements a thread (4 in float64), of which x, the gate, dy, the gain and a sum are held; else 32, read again.

    Programs of several rows want a few registers more than 128. None where a row does not fit.
    """
    block, each = power_of_two(n), 8 if itemsize <= 4 else 4
    if block > (8192 if itemsize <= 4 else 2048):
        return None
    rows, threads = _tile(block, each, itemsize, warp_size)
    hold, threads = (True, threads) if threads <= 512 else (False, 8 * 32 if warp_size == 32 else 8 * 64)
    programs = (384 if rows > 1 else 512) // threads
    if rows > 1 and itemsize == 8:
        rows //= 2
    choice = Choice(block=block, rows=rows, warps=threads // warp_size, hold=hold, programs=programs)
    return _resident(choice, warp_size)


def finish(warp_size: int = 32) -> Choice:
    """Columns of partial sums: lines of 128 bytes, and many rows at once, since few programs share the work."""
    return Choice(block=32, rows=128, warps=128 // warp_size)


def grid(choice: Choice, rows: int, heads: int, multiprocessors: int) -> int:
    """Programs of a backward launch: what is resident at once, a multiple of ``heads``, none without a tile."""
    tiles = -(-(rows // heads) // choice.rows)
    return heads * max(1, min(tiles, choice.programs * multiprocessors // heads))
