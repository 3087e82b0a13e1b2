"""The kernels of another processor as a backend: a process (tests/native/served.cpp) serves the calls of c_api.h."""

import os
import shlex
import struct
import subprocess
from types import SimpleNamespace

import torch

from conformance import Backend, Case
from rmsnorm.native.codes import DTYPES, FRESH, NORM_KINDS, OWN_THREADS, ROUND_FIRST, ZERO_CENTERED

FORWARD, BACKWARD, GATED_FORWARD, GATED_BACKWARD, QUANTIZED = range(5)
CODES = {getattr(torch, name): code for code, name in enumerate(DTYPES)}

Given = torch.Tensor | None


class Kernels:
    """Calls that change tensors in place, as the kernels do: all memory goes there and comes back."""

    def __init__(self, command: str, threads: int):
        environment = {**os.environ, "RMSNORM_NUM_THREADS": str(threads)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(shlex.split(command), stdin=pipe, stdout=pipe, env=environment)

    def close(self) -> None:
        self.process.communicate()  # the end of its input is the end of the process
        assert self.process.returncode == 0

    def __call__(
        self,
        operation: int,
        *tensors: Given,
        kind: str = "rms",
        flags: int = OWN_THREADS,
        dims: int = 1,
        eps: float | None = None,
        p: float = 1.0,
        groups: int = 1,
        norm_first: bool = False,
    ) -> None:
        """One call; fails where the kernels do not serve it."""
        storages = {t.untyped_storage().data_ptr(): memory(t) for t in tensors if t is not None}
        places, described = list(storages), []
        for t in tensors:
            if t is None:
                described.append(struct.pack("4q", -1, 0, 0, 0))
                continue
            place, offset = places.index(t.untyped_storage().data_ptr()), t.storage_offset() * t.element_size()
            numbers = (place, offset, CODES[t.dtype], t.ndim, *t.shape, *t.stride())
            described.append(struct.pack(f"{len(numbers)}q", *numbers))
        request = (operation, NORM_KINDS.index(kind), flags, dims, groups, norm_first, eps is not None)
        header = struct.pack("7q2d2q", *request, eps or 0.0, p, len(storages), len(tensors))
        sizes = struct.pack(f"{len(storages)}q", *(m.numel() for m in storages.values()))
        self.process.stdin.write(b"".join((header, sizes, *described, *(m.numpy().data for m in storages.values()))))
        self.process.stdin.flush()
        (served,) = struct.unpack("q", self.read(8))
        for m in storages.values():
            if m.numel():
                m.copy_(torch.frombuffer(bytearray(self.read(m.numel())), dtype=torch.uint8))
        assert served, "the kernels do not serve this call"

    def read(self, count: int) -> bytes:
        found = self.process.stdout.read(count)
        assert len(found) == count, f"the process ended with {self.process.wait()}"
        return found


def memory(t: torch.Tensor) -> torch.Tensor:
    """All bytes of a tensor's storage."""
    return torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage())


def unset(t: Given) -> Given:
    """Fresh memory for what a call writes; who leaves it unwritten, fails."""
    return None if t is None else torch.full(t.shape, float("nan"), dtype=t.dtype)


def is_served(case: Case) -> bool:
    """What the kernels leave to the composite: two dtypes of a residual sum, some of casting="llama"."""
    if case.residual not in (None, case.dtype):
        return False
    if case.casting == "once":
        return True
    product = case.dtype if case.weight is None else torch.promote_types(case.dtype, case.weight)
    double = case.out_dtype == torch.float64 and case.dtype != torch.float64
    return (case.weight is None or product == case.out_dtype) and not double


def backend(kernels: Kernels, name: str = "aarch64") -> Backend:
    def run(case: Case, inputs: SimpleNamespace) -> dict[str, torch.Tensor]:
        dims = len(case.normalized_shape)
        flags = OWN_THREADS | FRESH | ZERO_CENTERED * case.zero_centered | ROUND_FIRST * (case.casting == "llama")
        kind = "layer" if case.operation == "layer_norm" else "rms"
        options = {"kind": kind, "flags": flags, "dims": dims, "eps": case.eps, "p": case.p}

        def rows(t: torch.Tensor) -> torch.Tensor:
            """A copy where the elements of a row are not contiguous, which the callers make too."""
            row = t[(0,) * (t.ndim - dims)] if t.numel() else t
            return t if row.is_contiguous() else t.contiguous()

        x, dy = rows(inputs.x), rows(inputs.dy)
        y = torch.full(x.shape, float("nan"), dtype=case.out_dtype)
        adds = case.operation == "add_rms_norm"
        residual, plus = (rows(inputs.residual), rows(inputs.grad_residual)) if adds else (None, None)
        s = unset(residual)
        kernels(FORWARD, x, inputs.weight, inputs.bias, y, residual, s, **options)
        dx, dweight, dbias = unset(x), unset(inputs.weight), unset(inputs.bias)
        normed = s if adds else x
        kernels(BACKWARD, dy, normed, inputs.weight, dx, plus, dweight, dbias, **options)
        found = {"y": y, "s": s, "dx": dx, "dresidual": dx if adds else None, "dweight": dweight, "dbias": dbias}
        return {name: t for name, t in found.items() if t is not None}

    return Backend(name, run)
