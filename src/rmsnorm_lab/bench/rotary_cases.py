"""QK-norm with a rotary embedding in the benchmark: ``rows`` tokens of one sequence, heads of ``n`` elements.

Query and key are views of their projections, (1, heads, tokens, n) with a token's heads together in memory, as models
hand them to attention. There are ``cases.QUERY_HEADS`` and ``cases.KEY_HEADS`` of them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rmsnorm import reference
from rmsnorm_lab.bench.cases import EPS, KEY_HEADS, QUERY_HEADS, Case
from rmsnorm_lab.bench.oracle import Inputs, WrongError

# Relative to the size of a result: of a few roundings, and of the gradients' sums over rows.
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.03, "float16": 0.004}
BLOCK = 128  # tokens computed in float64 at a time

LEAVES = ("q", "k", "q_weight", "k_weight")
OPERANDS = ("q", "k", "cos", "sin", "q_weight", "k_weight")

Function = Callable[..., tuple[Tensor, Tensor]]
"""(q, k, cos, sin, q_weight, k_weight) → (query, key)."""


def make_inputs(case: Case, seed: int = 0) -> Inputs:
    """Query, key, gains, the angles' cosines and sines as Hugging Face makes them, and the results' gradients."""
    draw, dtype = torch.Generator().manual_seed(seed), getattr(torch, case.dtype)

    def heads(count: int) -> Tensor:
        return torch.randn(1, case.rows, count, case.n, generator=draw).to(dtype).transpose(1, 2)

    frequencies = 1e6 ** -torch.linspace(0, 1, case.n // 2)
    angles = (torch.arange(case.rows)[None, :, None] * frequencies).repeat(1, 1, 2)
    inputs = {"q": heads(QUERY_HEADS), "k": heads(KEY_HEADS), "cos": angles.cos(), "sin": angles.sin()}
    inputs |= {name: 1 + 0.3 * torch.randn(case.n, generator=draw) for name in ("q_weight", "k_weight")}
    inputs |= {"dy_q": heads(QUERY_HEADS), "dy_k": heads(KEY_HEADS)}
    return {name: t.to(dtype) for name, t in inputs.items()}


def separate(norm: Callable[[Tensor, Tensor], Tensor]) -> Function:
    """Two norms, and the rotary embedding as models write it."""

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return torch.cat((-second, first), -1)

    def call(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, q_weight: Tensor, k_weight: Tensor) -> Any:
        q, k = norm(q, q_weight), norm(k, k_weight)
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return q * cos + turned(q) * sin, k * cos + turned(k) * sin

    return call


def step(case: Case, call: Function, inputs: Inputs) -> Callable[[], Any]:
    """The call to time: the results, or the results and the gradients of query, key and gains."""
    if not case.backward:
        operands = [inputs[name] for name in OPERANDS]
        return lambda: call(*operands)
    leaves = {name: inputs[name].detach().requires_grad_() for name in LEAVES}
    operands = [(inputs | leaves)[name] for name in OPERANDS]
    given, gradients = tuple(leaves.values()), (inputs["dy_q"], inputs["dy_k"])

    def train() -> tuple[Tensor, ...]:
        results = call(*operands)
        return *results, *torch.autograd.grad(results, given, gradients)

    return train


class RotaryOracle:
    """The results and gradients of ``rmsnorm.reference``."""

    def __init__(self, case: Case, inputs: Inputs) -> None:
        self.case = case
        wide = {name: t.double().numpy() for name, t in inputs.items()}
        cos, sin = (np.expand_dims(wide[name], 2) for name in ("cos", "sin"))
        results, gradients, sums = [], [], []
        for name in ("q", "k"):
            x, dy, gain = wide[name].swapaxes(1, 2), wide[f"dy_{name}"].swapaxes(1, 2), wide[f"{name}_weight"]
            parts = [slice(start, start + BLOCK) for start in range(0, case.rows, BLOCK)]
            y = [reference.rms_norm_rotary(x[:, p], cos[:, p], sin[:, p], gain, eps=EPS) for p in parts]
            results.append(np.concatenate(y, 1).swapaxes(1, 2))
            if case.backward:
                vjp = [
                    reference.rms_norm_rotary_vjp(dy[:, p], x[:, p], cos[:, p], sin[:, p], gain, eps=EPS) for p in parts
                ]
                gradients.append(np.concatenate([dx for dx, _ in vjp], 1).swapaxes(1, 2))
                sums.append(np.sum([dgain for _, dgain in vjp], 0))
        self.want = dict(zip(("y_q", "y_k", *(f"d{n}" for n in LEAVES)), results + gradients + sums, strict=False))

    def check(self, found: Sequence[Any]) -> dict[str, float]:
        """The relative error of each output, or WrongError."""
        if len(found) != len(self.want):
            raise WrongError(f"it must have {len(self.want)} results; got {len(found)}")
        errors = {}
        for (name, want), output in zip(self.want.items(), found, strict=True):
            if tuple(output.shape) != want.shape:
                raise WrongError(f"{name} must have the shape {want.shape}; got {tuple(output.shape)}")
            error = float(np.linalg.norm(output.detach().double().numpy() - want) / np.linalg.norm(want))
            if not error <= TOLERANCE[self.case.dtype]:
                raise WrongError(f"{name} is {error:.3g} of its size off the oracle")
            errors[name] = error
        return errors
