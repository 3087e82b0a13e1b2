"""Compiles a kernel for a device once, and launches it without Triton's binder, which costs tens of microseconds.

Arguments are addresses and integers, and nothing is specialised on their values. A kernel's constants state what it may
assume: alignment, the row's length, which tensors exist. So another number of rows compiles nothing.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rmsnorm.torch.triton.choices import Choice

TYPES = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16"}
POINTERS = TYPES | {torch.int8: "i8"}
INTERPRETED: bool = triton.knobs.runtime.interpret  # TRITON_INTERPRET=1: kernels run in NumPy, on tensors of a CPU
INT32 = 2**31 - 2**16  # rows up to here are counted in 32 bits: dividing by 64-bit numbers takes five times as long


SHARED = 228 << 10  # bytes of an H100's multiprocessor, where a device does not say


class NotCompiled(RuntimeError):
    """Triton or the driver refuses a kernel; torch's operations serve instead."""


class Capturing(RuntimeError):
    """A kernel is not loaded yet, and none can be while a stream is captured into a CUDA graph."""


Constants = tuple[tuple[str, Any], ...]
Launcher = Callable[[int, int, Sequence[Tensor | None], Sequence[int], Sequence[int]], None]


def source(kernel: Any, pointers: Sequence[torch.dtype], wide: bool, constants: Constants) -> ASTSource:
    """What Triton compiles: ``kernel`` for pointers of these dtypes, then integers, then ``constants``.

    The integers that count rows or columns are 64 bits wide if ``wide``; strides always are.
    """
    fixed = dict(constants)
    aligned = [["tt.divisibility", fixed.get("BYTES", 1)]]
    signature, attributes, given = {}, {}, iter(pointers)
    for place, name in enumerate(kernel.arg_names):
        if name in fixed:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = "*" + POINTERS[next(given)]
            attributes[(place,)] = aligned
        else:
            stride = name.endswith(("_outer", "_middle", "_inner"))
            signature[name] = "i64" if stride or wide else "i32"
    return ASTSource(kernel, signature, fixed, attributes)


def options(choice: Choice, constants: Constants, target: GPUTarget) -> dict[str, Any]:
    """Where x̂ is rounded first, so is its product before a bias is added; a fused multiply-add would not do that."""
    fused = not dict(constants).get("ROUND_FIRST", False)
    limit = {"maxnreg": choice.registers} if target.backend == "cuda" else {}
    return {"num_warps": choice.warps, "enable_fp_fusion": fused, **limit}


@functools.lru_cache(maxsize=4096)
def launcher(
    kernel: Any, pointers: tuple[torch.dtype, ...], wide: bool, constants: Constants, choice: Choice, device: int
) -> Launcher:
    """A function (grid x, grid y, tensors, their addresses, integers) → None that launches on the current stream.

    The device must be the current one.
    """
    if INTERPRETED:

        def interpret(x: int, y: int, tensors: Any, addresses: Any, integers: Sequence[int]) -> None:
            there = next(t for t in tensors if t is not None)
            kernel[(x, y)](*(there if t is None else t for t in tensors), *integers, **dict(constants))

        return interpret

    if torch.cuda.is_current_stream_capturing():
        raise Capturing("a CUDA graph is being captured, in which no kernel can be loaded; run the step once before")
    what = source(kernel, pointers, wide, constants)
    try:
        compiled = triton.compile(what, target=target(device), options=options(choice, constants, target(device)))
        run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata
    except Exception as error:  # of a compiler, an assembler, a driver: each has its own
        raise NotCompiled(f"{kernel.__name__} does not compile: {type(error).__name__}: {error}") from error
    values = [dict(constants)[name] for name in kernel.arg_names if name in dict(constants)]
    stream = torch._C._cuda_getCurrentRawStream

    def launch(x: int, y: int, tensors: Any, addresses: Sequence[int], integers: Sequence[int]) -> None:
        run(x, y, 1, stream(device), function, metadata, None, None, None, *addresses, *integers, *values)

    return launch


@functools.cache
def target(device: int) -> GPUTarget:
    """Triton's name for a device, which must be the current one."""
    return GPUTarget("cuda", 0, 32) if INTERPRETED else triton.runtime.driver.active.get_current_target()


@functools.cache
def shared_memory(device: int) -> int:
    """Bytes of shared memory of a multiprocessor."""
    found = None if INTERPRETED else torch.cuda.get_device_properties(device)
    return getattr(found, "shared_memory_per_multiprocessor", SHARED)


@functools.cache
def multiprocessors(device: int) -> int:
    """How many multiprocessors a device has."""
    return 2 if INTERPRETED else torch.cuda.get_device_properties(device).multi_processor_count
