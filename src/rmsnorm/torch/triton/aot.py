"""Every launch choice compiled ahead of time, without a GPU, and the registers it takes.

``python -m rmsnorm.torch.triton.aot`` prints the tables of docs/gpu.md, or those of the operations named;
tests/test_triton_compile.py asserts that nothing spills and that the grid of a backward pass is resident.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from rmsnorm.torch.triton import backward, choices, forward, gated_kernels, launch, quantized

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 131072)
DTYPES = (torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Variant:
    """One kernel for one row length and dtype; ``operation`` says which of its parts there are."""

    operation: str
    n: int
    dtype: torch.dtype
    weight: torch.dtype = torch.float32
    k: int | None = None
    heads: bool = False
    levels: int = 1

    def __str__(self) -> str:
        name = {torch.bfloat16: "bf16", torch.float32: "f32", torch.float64: "f64", torch.float16: "f16"}
        return f"{self.operation}-{self.n}-{name[self.dtype]}"

    @property
    def centred(self) -> bool:
        return self.operation.startswith("layer")

    @property
    def is_backward(self) -> bool:
        return self.operation.endswith("backward")

    def choice(self, warp_size: int) -> choices.Choice | None:
        """None where a row does not fit the operation's only kernel."""
        item = self.dtype.itemsize
        if "gated" in self.operation:
            return (choices.gated_backward if self.is_backward else choices.gated_forward)(self.n, item, warp_size)
        if "quantized" in self.operation:
            return choices.quantized(self.n, item, warp_size)
        if self.is_backward:
            return choices.backward(self.n, item, self.centred, 2 if self.centred else 1, warp_size)
        return choices.forward(self.n, item, warp_size)

    def kernel(self, looped: bool) -> Any:
        if "gated" in self.operation:
            return gated_kernels.gated_backward_kernel if self.is_backward else gated_kernels.gated_kernel
        if "quantized" in self.operation:
            return quantized.quantized_looped_kernel if looped else quantized.quantized_kernel
        if self.is_backward:
            return backward.backward_looped_kernel if looped else backward.backward_kernel
        return forward.forward_looped_kernel if looped else forward.forward_kernel


OPERATIONS = (
    "rms_norm",
    "layer_norm",
    "add_rms_norm",
    "rms_norm backward",
    "layer_norm backward",
    "add_rms_norm backward",
    "rms_norm_gated",
    "rms_norm_gated, norm first",
    "rms_norm_gated backward",
    "rms_norm_gated, norm first, backward",
    "rms_norm_quantized to int8",
    "rms_norm_quantized to float8",
)


def variants(operations: Sequence[str] = OPERATIONS) -> Iterator[Variant]:
    """These operations at every length and dtype: among them is every choice there is."""
    for operation in operations:
        for dtype in DTYPES:
            for n in LENGTHS:
                variant = Variant(operation, n, dtype)
                if variant.choice(32) is not None:
                    yield variant


@dataclass(frozen=True)
class Counts:
    """What the assembler says of a kernel: registers a thread, bytes spilled by a thread, bytes of shared memory."""

    registers: int
    spilled: int
    shared: int


def compiled(variant: Variant, target: GPUTarget) -> tuple[Any, choices.Choice]:
    """Triton's compiled kernel, and the choice it was compiled for."""
    choice = variant.choice(target.warp_size)
    assert choice is not None, f"{variant} is left to the composite"
    kernel, added = variant.kernel(choice.looped), variant.operation.startswith("add")
    aligned = variant.n * variant.dtype.itemsize
    fixed: dict[str, Any] = {
        "N": variant.n,
        "K": variant.k or variant.n,
        "ROOT": 1e-3,
        "LAYER": variant.centred,
        "ADD": added,
        "PLUS": added,
        "HAS_WEIGHT": True,
        "HAS_BIAS": variant.centred,
        "HEADS": variant.heads,
        "DX": True,
        "DWEIGHT": True,
        "DBIAS": variant.centred,
        "NORM_FIRST": "norm first" in variant.operation,
        "INT8": variant.operation.endswith("int8"),
        "ZERO_CENTERED": False,
        "ROUND_FIRST": False,
        "LEVELS": variant.levels,
        "BYTES": min(choices.VECTOR, aligned & -aligned),
        "ROWS": choice.rows,
        "BLOCK": choice.block,
        "LEAF": choices.LEAF,
        "HOLD": choice.hold,
    }
    constants = tuple((name, value) for name, value in fixed.items() if name in kernel.arg_names)
    compute = torch.float64 if variant.dtype == torch.float64 else torch.float32
    parameters = {"weight_ptr": variant.weight, "bias_ptr": variant.weight}
    parameters |= {"dweight_ptr": compute, "dbias_ptr": compute}
    parameters |= {"codes_ptr": torch.int8, "scale_ptr": torch.float32}
    pointers = [parameters.get(name, variant.dtype) for name in kernel.arg_names if name.endswith("_ptr")]
    source = launch.source(kernel, pointers, False, constants)
    return triton.compile(source, target=target, options=launch.options(choice, constants, target)), choice


def counts(variant: Variant, target: GPUTarget) -> Counts:
    """Compiles and counts; a spill shows as a stack frame on NVIDIA's chips, as a number of registers on AMD's."""
    kernel, _ = compiled(variant, target)
    shared = kernel.metadata.shared
    if target.backend == "hip":
        found = dict(re.findall(r"\.(vgpr_count|[vs]gpr_spill_count):\s+(\d+)", kernel.asm["amdgcn"]))
        spilled = 4 * (int(found["vgpr_spill_count"]) + int(found["sgpr_spill_count"]))
        return Counts(int(found["vgpr_count"]), spilled, shared)
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(kernel.asm["cubin"])
        said = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(binary)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    registers, stack, local = (int(re.search(rf"\b{what}:(\d+)", said)[1]) for what in ("REG", "STACK", "LOCAL"))  # type: ignore[index]
    return Counts(registers, stack + local, shared)


def _markdown(operations: Sequence[str]) -> str:
    """Registers a thread of every choice, a row for each length."""
    jobs = [(variant, name) for variant in variants(operations) for name in TARGETS]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = dict(zip(jobs, pool.map(lambda job: counts(job[0], TARGETS[job[1]]), jobs), strict=True))
    lines = [f"Triton {triton.__version__}; registers a thread on {', '.join(TARGETS)}. Nothing spills."]
    for (variant, name), count in found.items():
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
            registers = " · ".join(str(found[variant, name].registers) for name in TARGETS)
            dtype = str(variant.dtype).removeprefix("torch.")
            lines.append(f"| {variant.n} | {dtype} | {held} | {choice.warps} | {registers} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(_markdown(sys.argv[1:] or OPERATIONS))
