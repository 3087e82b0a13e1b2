"""Compiles the Triton kernels for every chip, without a GPU: each launch choice, and what usual tensors do not need.

``python tools/compile_kernels.py check`` compiles a sample and fails where a kernel spills or a backward grid is not
resident; ``check --all`` compiles everything for every target; ``table`` prints the tables of docs/registers.md. It
uses the first Triton on the path: ``PYTHONPATH=build/triton-3.6.0`` (``make triton``) is the oldest that is served.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
import triton

from kernel_variants import TARGETS, Counts, Variant, counts
from rmsnorm.torch.triton import choices

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 131072)
DTYPES = BF16, F32, F64 = torch.bfloat16, torch.float32, torch.float64
KERNELS = (  # the operations that share a kernel
    ("rms_norm", "layer_norm", "add_rms_norm"),
    ("rms_norm backward", "layer_norm backward", "add_rms_norm backward"),
    ("rms_norm_gated", "rms_norm_gated, norm first"),
    ("rms_norm_gated backward", "rms_norm_gated, norm first, backward"),
    ("rms_norm_quantized to int8", "rms_norm_quantized to float8"),
)
OPERATIONS = tuple(operation for kernel in KERNELS for operation in kernel)
SPILLED, SPILLED_NARROW = 32, 64  # bytes a thread, where rows are read again (``hold``); the second: odd rows
Job = tuple[str, Variant]  # a target's name, and the kernel to compile for it


def variants(operations: Sequence[str] = OPERATIONS) -> Iterator[Variant]:
    """These operations at every length and dtype, which cover every launch choice."""
    for operation in operations:
        for dtype in DTYPES:
            for n in LENGTHS:
                variant = Variant(operation, n, dtype)
                if variant.choice(32) is not None:
                    yield variant


def odd(operations: Sequence[str] = OPERATIONS) -> Iterator[Variant]:
    """The longest odd row of each choice in 16 bits: masks, and accesses of single elements."""
    for operation in operations:
        for n in (63, 127, 255, 511, 1023, 2047, 4095, 8191, 16383, 131071):
            variant = Variant(operation, n, BF16)
            if variant.choice(32) is not None:
                yield variant


def rest() -> Iterator[Variant]:
    """What no length shows: addresses, casting, gains of each head, sums that are not wanted, the finishing kernel."""
    yield Variant("rms_norm", 1024, BF16, aligned=2)
    yield Variant("rms_norm", 4096, F32, aligned=4)
    yield Variant("rms_norm backward", 4096, BF16, aligned=2)
    yield Variant("rms_norm backward", 4096, F32, aligned=8)
    yield Variant("rms_norm_gated backward", 4096, BF16, aligned=4)
    yield Variant("rms_norm_gated", 2880, BF16)
    for n in (128, 4096, 16384, 131072):
        for operation in ("rms_norm", "rms_norm backward"):
            yield Variant(operation, n, BF16, BF16, llama=True)
            yield Variant(operation, n, BF16, k=n // 16, bias=True)
        yield Variant("rms_norm backward", n, BF16, dx=False)
        yield Variant("add_rms_norm backward", n, BF16, dweight=False)
    for operation in ("rms_norm", "rms_norm backward", "layer_norm backward", "rms_norm_gated backward"):
        yield Variant(operation, 128, BF16, k=8, heads=True, levels=3)
        yield Variant(operation, 2880, BF16, levels=2)
        yield Variant(operation, 5120, BF16)
    for dtype in (BF16, F32, F64):
        yield Variant("add_rms_norm", 131072, dtype, k=1024, bias=True)
        for n in (131072, 131071):
            yield Variant("rms_norm backward, rows", n, dtype)
            yield Variant("layer_norm backward, rows", n, dtype)
        for k in (16, 1024):
            yield Variant("rms_norm backward", 131072, dtype, k=k)
            yield Variant("rms_norm backward, rows", 131072, dtype, k=k)
            yield Variant("add_rms_norm backward, head", 131072, dtype, k=k)
    for operation in ("rms_norm", "rms_norm backward", "rms_norm backward, rows", "rms_norm_gated backward"):
        for n in (128, 8192):
            yield Variant(operation, n, BF16, root=0.0)
    yield Variant("rms_norm backward", 16384, BF16, root=0.0)
    yield Variant("rms_norm backward", 4096, F64, root=0.0)
    for n in (128, 4096, 131072):
        for dtype in (F32, F64):
            yield Variant("finish", n, dtype, BF16)
    yield Variant("add_rms_norm", 16385, F32)  # three pieces, whose loops the compiler unrolls
    yield Variant("layer_norm", 16385, F32, BF16)


def swept() -> Iterator[Variant]:
    """Forward kernels that no length has by default: a session on a device tries them."""
    for dtype in DTYPES:
        for n in (512, 1024, 2048, 2880, 4096, 5120, 7168, 8192, 16384):
            for by, operations in (("persistent", KERNELS[0]), ("parts", ("rms_norm", "add_rms_norm"))):
                for operation in operations:
                    variant = Variant(operation, n, dtype, by=by)
                    if variant.choice(64) is not None:
                        yield variant


def sample() -> list[Job]:
    """Every choice of every kernel and dtype once: operations that share a kernel, and the targets, take turns."""
    names = list(TARGETS)
    jobs: list[Job] = []
    for i, kernel in enumerate(KERNELS):
        for dtype in DTYPES:
            for j, n in enumerate(LENGTHS):
                variant = Variant(kernel[(i + j) % len(kernel)], n, dtype)
                if variant.choice(32) is not None:
                    jobs.append((names[len(jobs) % len(names)], variant))
    tried = [v for v in swept() if (v.by, v.n) in (("persistent", 16384), ("parts", 7168)) and v.dtype == BF16]
    some = [*rest(), *odd([kernel[-1] for kernel in KERNELS]), *tried]
    return jobs + [(names[i % 3], variant) for i, variant in enumerate(some)]


def everything() -> list[Job]:
    """All operations, lengths and dtypes on all targets; odd rows on one."""
    whole = [(name, variant) for variant in (*variants(), *rest(), *swept()) for name in TARGETS]
    return whole + [("sm_90", variant) for variant in odd()]


def fault(job: Job) -> str | None:
    """The fault of a kernel, or None: it does not compile, spills, or its programs do not fit a multiprocessor."""
    name, variant = job
    target = TARGETS[name]
    try:
        found = counts(variant, target)
    except Exception as error:  # the next kernel is compiled all the same
        return f"{variant} on {name}: {type(error).__name__}: {str(error)[-400:]}"
    choice = variant.choice(target.warp_size)
    assert choice is not None
    again = SPILLED if variant.bytes == choices.VECTOR else SPILLED_NARROW
    if found.spilled > (0 if choice.hold else again):
        return f"{variant} on {name} spills: {found}"
    threads = choice.programs * choice.warps * target.warp_size
    # On AMD's chips, registers belong to a quarter of a unit.
    if target.backend == "cuda" and threads * -(-found.registers // 8) * 8 > choices.REGISTERS:
        return f"{variant} on {name} is not resident: {found}"
    return None


def table(operations: Sequence[str]) -> str:
    """Registers a thread of every choice, a row for each length."""
    jobs = [(name, variant) for variant in variants(operations) for name in TARGETS]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found: dict[Job, Counts] = dict(
            zip(jobs, pool.map(lambda job: counts(job[1], TARGETS[job[0]]), jobs), strict=True)
        )
    lines = [f"Triton {triton.__version__}; registers a thread on {', '.join(TARGETS)}. Nothing spills."]
    for (name, variant), count in found.items():
        if count.spilled:
            lines[0] = f"SPILLS: {variant} on {name}: {count}"
    for operation in operations:
        lines += [
            "",
            f"**{operation}**",
            "",
            "| n | dtype | elements held × rows | warps | registers |",
            "|---|---|---|---|---|",
        ]
        for variant in variants([operation]):
            choice = variant.choice(32)
            assert choice is not None
            held = f"{choice.block} × {choice.rows}" + ", looped" * choice.looped
            registers = " · ".join(str(found[name, variant].registers) for name in TARGETS)
            dtype = str(variant.dtype).removeprefix("torch.")
            lines.append(f"| {variant.n} | {dtype} | {held} | {choice.warps} | {registers} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("check", "table"))
    parser.add_argument("operations", nargs="*", help="of the table (default: all)")
    parser.add_argument("--all", action="store_true", help="check everything, not a sample")
    parser.add_argument("--part", default="1/1", help="I/N: the I-th of N parts of the check (default: %(default)s)")
    given = parser.parse_args(arguments)
    if given.what == "table":
        print(table(given.operations or OPERATIONS))
        return 0
    part, parts = (int(number) for number in given.part.split("/"))
    jobs = (everything() if given.all else sample())[part - 1 :: parts]
    start, faults = time.perf_counter(), 0
    with ThreadPoolExecutor(os.cpu_count() if given.all else 1) as pool:
        for done, line in enumerate(pool.map(fault, jobs), 1):
            if line:
                faults += 1
                print(line, flush=True)
            if done % 100 == 0:
                left = (time.perf_counter() - start) * (len(jobs) - done) / done / 60
                print(f"{done} of {len(jobs)} kernels, {left:.0f} min left", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - start
    print(f"Triton {triton.__version__}: {len(jobs)} kernels in {seconds:.0f} s, {faults} faults")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
