"""Verification: what a provider returns is compared with the float64 reference before it is timed."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from rmsnorm import reference
from rmsnorm.spec import partial_count
from rmsnorm_lab.bench.cases import EPS, Case

Array: TypeAlias = NDArray[Any]
Inputs: TypeAlias = dict[str, torch.Tensor]

CHECKED = 1 << 20  # elements of y and dx compared; in larger cases, those of evenly spread rows
BLOCK = 1 << 18  # elements computed at a time: 2 MiB in float64, which stay in the cache
SUMMED = ("dweight", "dbias")
VECTORS = ("weight", "bias")
MOST = 127  # the largest code of int8

# Rows: in units of the dtype's epsilon, relative to the element or the root mean square of its row, whichever is
# larger. Correct code has 1-6 in float32 (more with a naive sum of a long row) and 0.4-1.2 in bfloat16.
ROW_TOLERANCE = {"float32": 64.0, "bfloat16": 4.0, "float16": 4.0}
# Sums over rows: relative error of the whole vector. Wide, so that a peer that sums in the input's dtype is timed too
# (torch's layer_norm in bfloat16 is 0.3 off at 100 000 rows). Zeros or a wrong sign have an error of 1 or more.
SUM_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.5, "float16": 0.5}
# Of sums in float32 that are rounded once, by at most 2^-9 = 0.002 of each element. Where a share s of the rows is
# missing, the error is about √s: 0.02 allows one row in 2500, and 0.5 a quarter of them.
WIDE_SUM_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.02, "float16": 0.02}
# Codes: half a step, and the error of a quotient in float32.
CODE_TOLERANCE = 0.501


class WrongError(Exception):
    """A provider's result differs from the oracle's; the message says where and by how much."""


def make_inputs(case: Case, seed: int = 0, device: str = "cpu") -> Inputs:
    """The tensors that all providers of a case share, drawn on ``device``.

    Rows differ in scale, their mean is not zero and elements grow along the row. So LayerNorm, RMSNorm and pRMSNorm
    give clearly different results, and a missing gain or gradient is seen.
    """
    draw = torch.Generator(device).manual_seed(seed)
    full, vector = case.full_shape, case.vector_shape

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, device=device)

    growing = torch.linspace(1, 2, case.n, device=device)
    x = normal(*full).add_(0.5).mul_(growing).mul_(normal(*full[:-1], 1).mul_(0.5).exp_())
    inputs = {"x": x, "weight": normal(*vector).mul_(0.3).add_(1), "bias": normal(*vector).mul_(0.3)}
    for name in ("residual", "gate"):
        if name in case.operands:
            inputs[name] = normal(*full)
    if case.backward:
        inputs["dy"] = normal(*full)
        if case.adds:
            inputs["dh"] = normal(*full)
    dtype = getattr(torch, case.dtype)
    return {name: tensor.to(dtype) for name, tensor in inputs.items()}


class Oracle:
    """The correct outputs of one case, computed once for all providers."""

    def __init__(self, case: Case, inputs: Inputs) -> None:
        self.case = case
        self._inputs = {name: t if name in VECTORS else t.reshape(case.rows, case.n) for name, t in inputs.items()}
        checked = min(case.rows, max(1, CHECKED // case.n))
        self._rows = np.unique(np.linspace(0, case.rows - 1, checked).round().astype(np.int64))
        self.want = self._compute()

    def check(self, outputs: Sequence[Any], wide_sums: bool = False) -> dict[str, float]:
        """The error of each output, or WrongError. Rows in epsilons of the dtype, sums over rows relative.

        wide_sums: whether sums over rows must be taken in float32, whatever the dtype of the input.
        """
        names = self.case.outputs
        if len(outputs) != len(names):
            raise WrongError(f"must return {len(names)} arrays ({', '.join(names)}); got {len(outputs)}")
        sums = WIDE_SUM_TOLERANCE if wide_sums else SUM_TOLERANCE
        return {name: self._error(name, output, sums) for name, output in zip(names, outputs, strict=True)}

    def _error(self, name: str, output: Any, sums: dict[str, float]) -> float:
        case = self.case
        shape = case.vector_shape if name in SUMMED else (*case.full_shape[:-1], 1 if name == "scale" else case.n)
        dtype = {"q": "int8", "scale": "float32"}.get(name, case.dtype)
        if tuple(output.shape) != shape or not str(output.dtype).endswith(dtype):
            raise WrongError(f"{name} must be {dtype} {tuple(shape)}; got {output.dtype} {tuple(output.shape)}")
        want = self.want[name]
        if name in SUMMED:
            error = float(np.linalg.norm(_wide(output) - want) / np.linalg.norm(want))
            unit, tolerance = "of its norm", sums[dtype]
        else:
            off = np.abs(_wide(output.reshape(case.rows, -1)[self._rows]) - want)
            if name == "q":
                error, unit, tolerance = float(np.max(off)), "of a step", CODE_TOLERANCE
            else:
                scale = np.maximum(np.abs(want), np.sqrt(np.mean(want**2, axis=-1, keepdims=True)))
                share = np.divide(off, scale, out=np.zeros_like(off), where=off != 0)  # rows of zeros may be wanted
                error = float(np.max(share) / torch.finfo(getattr(torch, dtype)).eps)
                unit, tolerance = "epsilon", ROW_TOLERANCE[dtype]
        if not error <= tolerance:  # NaN is wrong too
            raise WrongError(f"{name} is {error:.3g} {unit} off the float64 oracle; at most {tolerance:g} is allowed")
        return error

    def _compute(self) -> dict[str, Array]:
        """y and dx for the checked rows only; sums over all rows, block by block."""
        rows = [self._block(self._rows[part]) for part in _parts(len(self._rows), self.case.n)]
        want = {name: np.concatenate([block[name] for block in rows]) for name in rows[0] if name not in SUMMED}
        if self.case.backward:
            everywhere = (self._block(np.arange(self.case.rows)[p]) for p in _parts(self.case.rows, self.case.n))
            sums = [{name: block[name] for name in SUMMED if name in block} for block in everywhere]
            want |= {name: np.sum([block[name] for block in sums], axis=0) for name in sums[0]}
        return want

    def _block(self, rows: Array) -> dict[str, Array]:
        case = self.case
        took = {name: _wide(t if name in VECTORS else t[rows]) for name, t in self._inputs.items()}
        x, gain, bias, dy = took["x"], took["weight"], took["bias"], took.get("dy")
        if case.op == "layer_norm":
            want = {"y": reference.layer_norm(x, gain, bias, eps=EPS)}
            if dy is not None:
                want["dx"], want["dweight"], want["dbias"] = reference.layer_norm_vjp(dy, x, gain, eps=EPS)
            return want
        options: dict[str, Any] = {"k": partial_count(case.n, case.p), "eps": EPS}
        if case.op == "rms_norm_gated":
            want = {"y": reference.rms_norm_gated(x, took["gate"], gain, **options)}
            if dy is not None:
                gradients = reference.rms_norm_gated_vjp(dy, x, took["gate"], gain, **options)
                want |= zip(("dx", "dgate", "dweight"), gradients, strict=True)
            return want
        want = {}
        if case.adds:
            # The sum is rounded to the input's dtype; in torch, because NumPy has no bfloat16.
            x = want["h"] = _wide(self._inputs["x"][rows] + self._inputs["residual"][rows])
        if case.quantized:
            want["q"], want["scale"] = reference.rms_norm_quantized(x, gain, **options, most=MOST)
            return want
        head = np.zeros_like(rows) if case.heads is None else rows % case.heads
        gain = gain.reshape(-1, case.n)
        xhat = reference.rms_norm(x, **options)
        want["y"] = xhat * gain[head]
        if dy is not None:
            want["dx"] = reference.rms_norm_vjp(dy * gain[head], x, **options)[0]
            own = [np.sum((dy * xhat)[head == h], axis=0) for h in range(len(gain))]
            want["dweight"] = np.reshape(own, case.vector_shape)
            if case.adds:
                want["dx"] = want["dx"] + took["dh"]
                want["dresidual"] = want["dx"]
        return want


def _parts(rows: int, n: int) -> Iterator[slice]:
    step = max(1, BLOCK // n)
    return (slice(start, start + step) for start in range(0, rows, step))


def _wide(value: Any) -> Array:
    """A torch, NumPy or JAX array in float64."""
    if isinstance(value, torch.Tensor):
        return value.detach().double().cpu().numpy()
    return np.asarray(value).astype(np.float64)
