"""Compiles one Triton kernel for a chip, without the chip, and counts the registers that it takes."""

import re
import subprocess
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from rmsnorm.torch.triton import (
    backward_kernels,
    choices,
    forward_kernels,
    gated_kernels,
    launch,
    long_backward_kernels,
    parts_kernels,
    quantized_kernels,
)

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SHORT = {torch.bfloat16: "bf16", torch.float32: "f32", torch.float64: "f64", torch.float16: "f16"}


@dataclass(frozen=True)
class Variant:
    """One kernel for one row length and dtype.

    Attributes:
        operation: which kernel, and which of its parts. A long row's backward pass is three kernels: columns, or with
            these words in the name ``rows`` and pRMSNorm's ``head``.
        n, dtype: of a row.
        weight: the gain's dtype.
        k: elements of the statistic; None: all.
        heads: whether each head has its own gain.
        levels: of strides between rows.
        aligned: the greatest power of two that divides all addresses; n may allow less.
        root: √eps.
        llama: whether the product with the gain is rounded twice.
        bias: whether there is one; LayerNorm always has one.
        dx, dweight: backward: whether the gradient is wanted.
        by: forward: the function of choices.py that decides, in place of ``forward``.
    """

    operation: str
    n: int
    dtype: torch.dtype
    weight: torch.dtype = torch.float32
    k: int | None = None
    heads: bool = False
    levels: int = 1
    aligned: int = choices.VECTOR
    root: float = 1e-3
    llama: bool = False
    bias: bool = False
    dx: bool = True
    dweight: bool = True
    by: str = ""

    def __str__(self) -> str:
        more = [f"{f.name}={getattr(self, f.name)}" for f in fields(self)[4:] if getattr(self, f.name) != f.default]
        return " ".join([self.operation, str(self.n), SHORT[self.dtype], *more])

    @property
    def centred(self) -> bool:
        return self.operation.startswith("layer")

    @property
    def biased(self) -> bool:
        return self.bias or self.centred

    @property
    def bytes(self) -> int:
        """The widest access that addresses allow."""
        together = self.n * self.dtype.itemsize | self.aligned
        return together & -together

    @property
    def is_backward(self) -> bool:
        return self.operation.endswith("backward")

    def choice(self, warp_size: int) -> choices.Choice | None:
        """None if a row does not fit the operation's only kernel."""
        item, aligned = self.dtype.itemsize, self.bytes == choices.VECTOR
        if self.operation == "finish":
            return choices.finish(
                132 * (choices.backward(self.n, 2) or choices.backward_columns(2)).programs, warp_size
            )
        if "gated" in self.operation:
            return (choices.gated_backward if self.is_backward else choices.gated_forward)(self.n, item, warp_size)
        if "quantized" in self.operation:
            return choices.quantized(self.n, item, aligned, warp_size)
        if self.is_backward:
            wanted = self.centred, self.dweight + self.biased, aligned, warp_size
            return choices.backward(self.n, item, *wanted) or choices.backward_columns(item, *wanted)
        if self.operation.endswith("rows"):
            return choices.backward_rows(item, aligned, warp_size)
        if self.operation.endswith("head"):
            return choices.head(self.k or self.n, warp_size)
        if self.by:
            return getattr(choices, self.by)(self.n, item, aligned, warp_size)
        alone = self.operation == "rms_norm" and not self.bias and (self.k or self.n) == self.n
        return self.streamed(warp_size) or choices.forward(self.n, item, aligned, warp_size, alone)

    def streamed(self, warp_size: int) -> choices.Choice | None:
        """The choice of pRMSNorm's long forward rows."""
        return choices.stream(self.n, self.k or self.n, self.dtype.itemsize, self.bytes == choices.VECTOR, warp_size)

    def kernel(self, choice: choices.Choice) -> Any:
        looped = choice.looped
        if self.operation == "finish":
            return backward_kernels.finish_kernel
        if "gated" in self.operation:
            return gated_kernels.gated_backward_kernel if self.is_backward else gated_kernels.gated_kernel
        if "quantized" in self.operation:
            return quantized_kernels.quantized_looped_kernel if looped else quantized_kernels.quantized_kernel
        if self.is_backward:
            return long_backward_kernels.columns_kernel if looped else backward_kernels.backward_kernel
        if self.operation.endswith("rows"):
            return long_backward_kernels.rows_kernel
        if self.operation.endswith("head"):
            return long_backward_kernels.head_kernel
        if choice.programs:
            return forward_kernels.forward_persistent_kernel
        if choice.rest[0]:
            return parts_kernels.forward_parts_kernel
        if looped and self.streamed(32):
            return forward_kernels.forward_stream_kernel
        return forward_kernels.forward_looped_kernel if looped else forward_kernels.forward_kernel


@dataclass(frozen=True)
class Counts:
    """The assembler's counts: registers a thread, bytes spilled by a thread, bytes of shared memory."""

    registers: int
    spilled: int
    shared: int


def compiled(variant: Variant, target: GPUTarget) -> tuple[Any, choices.Choice]:
    """Triton's compiled kernel, and the choice it was compiled for."""
    choice = variant.choice(target.warp_size)
    assert choice is not None, f"{variant} is left to the composite"
    kernel, added = variant.kernel(choice), variant.operation.startswith("add")
    columns = choices.backward_columns(variant.dtype.itemsize, warp_size=target.warp_size)
    pieces = -(-variant.n // (choice if "forward" in kernel.__name__ else columns).block)
    split = not variant.centred and choices.splits(variant.n, variant.k or variant.n, pieces)
    fixed: dict[str, Any] = {
        "N": variant.n,
        "K": variant.k or variant.n,
        "ROOT": variant.root,
        "LAYER": variant.centred,
        "ADD": added,
        "PLUS": added,
        "HAS_WEIGHT": True,
        "HAS_BIAS": variant.biased,
        "HEADS": variant.heads,
        "DX": variant.dx and not (split and variant.operation.endswith("rows")),
        "DWEIGHT": variant.dweight,
        "DBIAS": variant.biased,
        "NORM_FIRST": "norm first" in variant.operation,
        "INT8": variant.operation.endswith("int8"),
        "ZERO_CENTERED": False,
        "ROUND_FIRST": variant.llama,
        "LEVELS": variant.levels,
        "BYTES": variant.bytes,
        "ROWS": choice.rows,
        "BLOCK": choice.block,
        "LEAF": choices.LEAF,
        "HOLD": choice.hold,
        "STAGES": choice.stages,
        "SPLIT": split,
        "PIECES": pieces,
        "PARTS": choices.power_of_two(pieces),
        "HEAD": choices.HEAD,
        "SECOND": choice.rest[0],
        "THIRD": choice.rest[1],
    }
    constants = tuple((name, value) for name, value in fixed.items() if name in kernel.arg_names)
    compute = torch.float64 if variant.dtype == torch.float64 else torch.float32
    parameters = {"weight_ptr": variant.weight, "bias_ptr": variant.weight}
    sums = variant.weight if variant.operation == "finish" else compute
    parameters |= {
        "partial_ptr": compute,
        "found_ptr": compute,
        "part_ptr": compute,
        "dweight_ptr": sums,
        "dbias_ptr": sums,
    }
    parameters |= {"codes_ptr": torch.int8, "scale_ptr": torch.float32}
    pointers = [parameters.get(name, variant.dtype) for name in kernel.arg_names if name.endswith("_ptr")]
    source = launch.source(kernel, pointers, False, constants)
    return triton.compile(source, target=target, options=launch.options(choice, constants, target)), choice


def counts(variant: Variant, target: GPUTarget) -> Counts:
    """Compile and count. A spill is seen as a stack frame."""
    kernel, _ = compiled(variant, target)
    shared = kernel.metadata.shared
    if target.backend == "hip":
        found = dict(re.findall(r"\.(vgpr_count|private_segment_fixed_size):\s+(\d+)", kernel.asm["amdgcn"]))
        return Counts(int(found["vgpr_count"]), int(found["private_segment_fixed_size"]), shared)
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
