"""How a kernel is launched, as a pure function of the row's length and dtype.

Nothing is tuned at run time. The number of rows changes only the grid, so a row's sum has an order that depends on its
length alone. docs/registers.md has the register counts of these choices; tests/triton/test_compile.py checks them.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

VECTOR = 16  # bytes that a thread reads or writes at once
REGISTERS = 65536  # of a multiprocessor
MOST_Y = 65535  # programs on the second axis of a grid
STREAMED = 32768  # bytes from which on a row of pRMSNorm is shared by several programs
HEAD = 1024  # the most elements of pRMSNorm's statistic that a program reads beside its own columns
LEAF = 64  # tiles whose gradients of gain and bias are summed in registers before the sums go to memory


@dataclass(frozen=True)
class Choice:
    """One way to launch a kernel.

    Attributes:
        block: elements of a row that a program holds at once, a power of two: all of it, or a piece if ``looped``.
        rest: forward: elements held in a second and a third part of a row, powers of two; 0: there is none.
        rows: rows that a program holds at once.
        warps: of a program.
        looped: whether a row is read in pieces because it does not fit into registers.
        stages: tiles in flight, of which all but one are being copied to shared memory, if ``programs`` are resident;
            pieces, for the statistic of a looped row.
        hold: backward: whether the elements that a tile needs after its reductions stay in registers.
        programs: resident on a multiprocessor; the grid is this times the number of multiprocessors. 0: forward, a
            program for every tile.
        registers: the most that a thread may use. Without a limit NVIDIA's assembler uses fewer than it may, and
            spills a few bytes.
    """

    block: int
    rows: int
    warps: int
    looped: bool = False
    hold: bool = True
    stages: int = 1
    programs: int = 0
    registers: int | None = None
    rest: tuple[int, int] = (0, 0)


def power_of_two(n: int) -> int:
    """The next power of two, at least 16: shorter blocks make no better use of a warp."""
    return 1 << max(4, (n - 1).bit_length())


def _tile(block: int, each: int, itemsize: int, warp_size: int) -> tuple[int, int]:
    """(rows, threads) for rows of ``block`` elements, with ``each`` elements a thread.

    A row that a warp reads with one vector a thread is reduced by shuffles alone. Four warps, each with its own rows,
    make a program, which amortises the read of the gain. Longer rows that fit a warp get one warp, so that none waits
    at a barrier. Other rows get as many threads as they need.
    """
    if block * itemsize <= warp_size * VECTOR:
        return 128 * each // block, 128
    if block <= warp_size * each:
        return warp_size * each // block, warp_size
    return 1, block // each


@lru_cache
def forward(n: int, itemsize: int, aligned: bool = True, warp_size: int = 32, alone: bool = False) -> Choice:
    """64 bytes of x a thread: four vectors in flight, about 80 registers with the gain; twice that in the longest.

    Half of that if rows are not multiples of 16 bytes, because each element then has an address and a load of its own.
    A multiprocessor that holds about 800 such threads has about 50 KiB in flight. It needs 18 KiB to keep an H100's
    3.35 TB/s busy over a latency of 700 ns.

    ``alone``: RMSNorm of whole rows, without residual or bias. On an H200 two kinds of such rows of 16 bits are faster
    in another way. Rows in 16384 elements have a multiprocessor for themselves, and wait for memory unless the next
    rows are copied ahead (0.73 of the time). Rows of 5120 and 7168 take 0.91 and 0.87 with twice as many elements a
    thread.
    A looped row has a program of 32 warps if it can: fewer rows are read at once, and more of what is read again is
    still in the second cache level (0.92 of the time at 32768, 0.91 at 131072). Copying its pieces ahead took 1.06.
    """
    block, each = power_of_two(n), (64 if aligned else 32) // itemsize
    longest = 16384 if itemsize <= 4 else 4096
    if block > longest:  # 128 bytes of float32 a thread at 512 threads is the most that does not spill
        piece = (16 if itemsize <= 4 else 8) * 512
        if not aligned:  # with whole pieces, sums of odd rows of 16385 or 20001 elements spill up to 136 bytes a thread
            piece //= 2
        threads = 1024 if aligned and itemsize <= 4 else 512
        return Choice(block=piece, rows=1, warps=threads // warp_size, looped=True)
    rows, threads = _tile(block, each, itemsize, warp_size)
    if threads == 128 and rows > 1:  # 0.98 of the time at 128 elements of 16 bits
        rows, threads = rows // 2, 64
    choice = Choice(block=block, rows=rows, warps=min(threads, 512) // warp_size)
    if alone and aligned and itemsize == 2 and warp_size == 32:
        if block == 16384:
            return resident(replace(choice, programs=1, stages=3), warp_size)
        if block == 8192 and n <= 7168:
            return replace(choice, warps=choice.warps // 2)
    return choice


def persistent(n: int, itemsize: int, aligned: bool = True, warp_size: int = 32) -> Choice | None:
    """The same tiles by programs that stay: the gain is read once, and the next tile is copied ahead.

    512 threads with 128 registers each share a multiprocessor. Nothing spills then, and 32 KiB are in flight. None for
    looped rows.
    """
    choice = forward(n, itemsize, aligned, warp_size)
    if choice.looped:
        return None
    choice = replace(choice, programs=max(1, 512 // (choice.warps * warp_size)), stages=1 + aligned)
    return resident(choice, warp_size)


def parts(n: int, itemsize: int, aligned: bool = True, warp_size: int = 32) -> Choice | None:
    """A row in two or three parts, if they hold fewer elements than one block; 64 or 128 bytes a thread.

    No length has this choice: on an H200 it took 1.12 to 1.21 times as long as one block at 2880, 5120 and 7168.
    """
    whole = forward(n, itemsize, aligned, warp_size)
    block = whole.block // 2
    second = power_of_two(n - block)
    third = 0
    if second == block and n - block - block // 2 > 0:
        second, third = block // 2, power_of_two(n - block - block // 2)
    if whole.looped or whole.warps * warp_size < 128 or block + second + third >= whole.block:
        return None
    return replace(whole, block=block, warps=whole.warps // 2, rest=(second, third))


@lru_cache
def stream(n: int, k: int, itemsize: int, aligned: bool = True, warp_size: int = 32) -> Choice | None:
    """pRMSNorm's long rows: 128 threads with two vectors each, or four where the statistic has many elements.

    A program reads the first k elements too, at most a quarter as many as its own in 16 bits. They come from the second
    cache level: programs of a row are neighbours. None for shorter rows, which fit into registers: the other kernel
    reads them once, too, and on an H200 it is as fast at 4096. From 16384 on, this one is (0.97 of the time for many
    rows, 0.6 for one).
    """
    if not (k < n and k <= HEAD and power_of_two(n) * itemsize >= STREAMED):
        return None
    most = (64 if aligned else 32) // itemsize
    each = most // 2 if 4 * k <= 128 * (most // 2) else most
    return Choice(block=128 * each, rows=1, warps=128 // warp_size, looped=True)


def resident(choice: Choice, warp_size: int) -> Choice:
    """The choice with the registers that a thread may use if ``programs`` are to share a multiprocessor."""
    most = REGISTERS // (choice.programs * choice.warps * warp_size) // 8 * 8  # registers are given out by eights
    return replace(choice, registers=min(255, most))


@lru_cache
def backward(
    n: int, itemsize: int, centred: bool = False, sums: int = 1, aligned: bool = True, warp_size: int = 32
) -> Choice | None:
    """16 elements a thread (4 in float64): x, dy, the gain and the running sum are 64 of at most 128 registers.

    So 512 threads fit a multiprocessor, in programs of any size, and this makes the grid. Half as many elements if a
    mean or a second sum is held too or a row is not a multiple of 16 bytes, and half of that in programs of several
    rows. Rows of 16384 elements of 16 bits fit 16 warps, if x, dy and the gain are read again after the reductions.
    None if a row does not fit.

    Tiles of 16 bits are copied ahead, two of full rows and three of others and of short ones; one of 32 bits. On an
    H200 rows of 1024 to 8192 elements took 0.61 to 0.82 of the time with two instead of one, and those of 64 to 256,
    2880 and 7168 0.66 to 0.93 with three instead of two. 5120 elements take 0.93 in half as many threads.
    """
    block, each = power_of_two(n), _held(itemsize, centred, sums, aligned)
    if itemsize == 2 and block == 16384 and each == 16:
        return resident(Choice(block=block, rows=1, warps=512 // warp_size, hold=False, programs=1), warp_size)
    if block > 512 * each:
        return None
    rows, threads, together = *_tile(block, each, itemsize, warp_size), 512
    if rows > 1 and aligned:
        rows, threads, together = _several(block, each // 2, itemsize, warp_size)
    elif rows > 1:
        rows //= 2
    stages = 2 if aligned else 1
    if aligned and itemsize == 2 and warp_size == 32:
        stages = 3 if n == block > 512 else 4
        if each == 16 and block == 8192 and 3 * n <= 2 * block:
            threads, together, stages = 256, 256, 3
    choice = Choice(block=block, rows=rows, warps=threads // warp_size, programs=together // threads, stages=stages)
    return resident(choice, warp_size)


def _several(block: int, each: int, itemsize: int, warp_size: int) -> tuple[int, int, int]:
    """(rows, threads, threads of a multiprocessor) for rows that a warp reads with one vector a thread, copied ahead.

    Triton chooses a layout for what was copied in which sums over a row take up to five times as many shuffles, unless
    a tile has 2 ``each`` rows or a warp one. At n = 128 on an H200, 16 rows took 0.3 of the time of eight. The threads
    there are more than elsewhere, because instructions are the limit.
    """
    vectors = block * itemsize // VECTOR
    if vectors >= warp_size:
        return 1, warp_size, 512
    if vectors == warp_size // 2:
        return 256 * each // block, 256, 768
    return 128 * each // block, 128, 512


def _held(itemsize: int, centred: bool, sums: int, aligned: bool) -> int:
    """Elements of each operand that a thread of a backward kernel holds."""
    each = 16 if itemsize <= 4 else 4
    return each if aligned and sums < 2 and not centred else each // 2


@lru_cache
def backward_rows(itemsize: int, aligned: bool = True, warp_size: int = 32) -> Choice:
    """The first kernel of long rows: one row a program, in pieces of 8 elements a thread beside up to six sums."""
    each = 8 if itemsize <= 4 else 4
    stages = (3 if itemsize == 2 and warp_size == 32 else 2) if aligned else 1
    choice = Choice(block=256 * each, rows=1, warps=256 // warp_size, looped=True, programs=2, stages=stages)
    return resident(choice, warp_size)


@lru_cache
def backward_columns(
    itemsize: int, centred: bool = False, sums: int = 1, aligned: bool = True, warp_size: int = 32
) -> Choice:
    """Columns of long rows: as many elements a thread as :func:`backward` holds, with two more rows in flight."""
    block = 128 * _held(itemsize, centred, sums, aligned)
    stages = 3 if aligned else 1
    choice = Choice(block=block, rows=1, warps=128 // warp_size, looped=True, programs=4, stages=stages)
    return resident(choice, warp_size)


@lru_cache
def quantized(n: int, itemsize: int, aligned: bool = True, warp_size: int = 32) -> Choice:
    """As forward, but a looped row has 512 threads, which may use all registers: at 64 they spill."""
    choice = forward(n, itemsize, aligned, warp_size)
    return replace(choice, warps=512 // warp_size, registers=REGISTERS // 512) if choice.looped else choice


@lru_cache
def gated_forward(n: int, itemsize: int, warp_size: int = 32) -> Choice | None:
    """Half as many elements a thread as a plain norm, because x and the gate are held. None if a row does not fit.

    The longest rows have as many as a plain norm. There, and in float64, the assembler spills at 64 registers unless it
    is told that it may use 128.
    """
    block, each = power_of_two(n), 32 // itemsize
    if block > 512 * 2 * each:
        return None
    rows, threads = _tile(block, each, itemsize, warp_size)
    registers = 128 if itemsize == 8 or threads > 512 else None
    return Choice(block=block, rows=rows, warps=min(threads, 512) // warp_size, registers=registers)


@lru_cache
def gated_backward(n: int, itemsize: int, warp_size: int = 32) -> Choice | None:
    """8 elements a thread (4 in float64) with x, the gate, dy, the gain and a sum held; 32, read again, in longer rows.

    Half of that if a program has several rows. None if a row does not fit.
    """
    block, each = power_of_two(n), 8 if itemsize <= 4 else 4
    if block > (8192 if itemsize <= 4 else 2048):
        return None
    rows, threads = _tile(block, each, itemsize, warp_size)
    together = 512 if itemsize <= 4 else 256  # threads of a multiprocessor
    if threads > together:
        return resident(Choice(block=block, rows=1, warps=8, hold=False, programs=1), warp_size)
    if rows > 1:
        rows, threads, _ = _several(block, each // 2, itemsize, warp_size)
    choice = Choice(block=block, rows=rows, warps=threads // warp_size, programs=together // threads, stages=2)
    return resident(choice, warp_size)


def fitted(choice: Choice, itemsizes: int, shared: int) -> Choice:
    """The choice with as many stages as ``shared`` bytes of a multiprocessor's shared memory allow.

    ``itemsizes``: bytes of an element of all operands that are copied ahead together. 2 KiB a program are left for
    reductions.
    """
    tile = choice.rows * choice.block * itemsizes
    most = 1 + (shared // choice.programs - 2048) // tile
    return replace(choice, stages=max(1, min(choice.stages, most)))


def splits(n: int, k: int, pieces: int) -> bool:
    """Whether a kernel of its own makes the gradients of a long row's first k elements, which must fit one program."""
    return k < n and k <= HEAD and pieces <= 1024


@lru_cache
def head(k: int, warp_size: int = 32) -> Choice:
    """The first k elements of a row, 8 a thread."""
    block = power_of_two(k)
    return Choice(block=block, rows=1, warps=max(1, block // (8 * warp_size)))


def finish(parts: int, warp_size: int = 32) -> Choice:
    """Columns of at most ``parts`` partial sums: 32 elements a thread, and as few rounds as possible.

    Short rows have few columns and many parts. With 32 columns a program, 1024 columns kept a quarter of an H200 busy
    for 11 µs.
    """
    rows = min(1024, power_of_two(parts))
    return Choice(block=8192 // rows, rows=rows, warps=256 // warp_size)


def most_programs(choice: Choice, heads: int, multiprocessors: int, pieces: int = 1) -> int:
    """Programs of a head that are resident at once in a backward launch, whatever the number of rows."""
    return max(1, choice.programs * multiprocessors // (heads * pieces))


def grid(choice: Choice, rows: int, heads: int, multiprocessors: int, pieces: int = 1) -> int:
    """Programs of a backward launch: as many as are resident, a multiple of ``heads``, each with at least one tile.

    ``pieces`` of a row are programs side by side.
    """
    tiles = -(-(rows // heads) // choice.rows)
    return heads * max(1, min(tiles, most_programs(choice, heads, multiprocessors, pieces)))
