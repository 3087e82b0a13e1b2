"""Compiled chains in the benchmark: additions and norms in turn, as in a transformer's residual stream.

Each of the ``PAIRS`` links is y = norm(h) ⊙ gain, then h = h + y·D·U with matrices of rank ``RANK``, as a low-rank
adapter has them. In a model there is a matrix product between two norms, which Inductor does not fuse. Without one it
would compute the whole chain for one row after another, in one loop, as it can in no model.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rmsnorm_lab.bench.cases import EPS, Case
from rmsnorm_lab.bench.oracle import Inputs, WrongError

PAIRS, RANK = 8, 8

# Relative to the size of the result: of eight roundings of a sum that grows, and of the gradients' sums.
TOLERANCE = {"float32": 2e-5, "bfloat16": 0.03, "float16": 0.004}

Link = Callable[[Tensor, Tensor | None, Tensor], tuple[Tensor, Tensor]]
"""(h, a branch or None, gain) → (their sum, the norm of that)."""


def make_inputs(case: Case, seed: int = 0) -> Inputs:
    """The stream, random gains, and the gradient of the result. Dynamo forgets the graphs of other cases."""
    torch._dynamo.reset()
    draw, dtype = torch.Generator().manual_seed(seed), getattr(torch, case.dtype)
    gains = 1 + 0.3 * torch.randn(PAIRS, case.n, generator=draw)
    x, dy = (torch.randn(case.rows, case.n, generator=draw) for _ in range(2))
    down, up = torch.randn(case.n, RANK, generator=draw) / case.n**0.5, torch.randn(RANK, case.n, generator=draw)
    inputs = {"x": x, "gains": gains, "dy": dy, "down": down, "up": up / RANK**0.5}
    return {name: t.to(dtype) for name, t in inputs.items()}


Chain = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def chain(link: Link) -> Chain:
    """The function of the stream, the gains and the two matrices."""

    def call(x: Tensor, gains: Tensor, down: Tensor, up: Tensor) -> Tensor:
        h, branch = x, None
        for gain in gains.unbind():
            h, y = link(h, branch, gain)
            branch = y @ down @ up
        return h + branch  # type: ignore[operator]

    return call


def step(case: Case, call: Chain, inputs: Inputs) -> Callable[[], Any]:
    """The call to time: the result, or the result and the gradients of stream and gains."""
    x, gains, *matrices = (inputs[name] for name in ("x", "gains", "down", "up"))
    if not case.backward:
        return torch.no_grad()(lambda: (call(x, gains, *matrices),))
    leaves = [t.detach().clone().requires_grad_() for t in (x, gains)]

    def train() -> tuple[Tensor, ...]:
        y = call(*leaves, *matrices)
        return y.detach(), *torch.autograd.grad(y, leaves, inputs["dy"])

    return train


class ChainOracle:
    """The chain in float64, of torch's plain operations."""

    def __init__(self, case: Case, inputs: Inputs) -> None:
        self.case = case

        def link(h: Tensor, branch: Tensor | None, gain: Tensor) -> tuple[Tensor, Tensor]:
            h = h if branch is None else h + branch
            return h, h * torch.rsqrt(h.square().mean(-1, keepdim=True) + EPS) * gain

        self.want = step(case, chain(link), {name: t.double() for name, t in inputs.items()})()

    def check(self, found: Sequence[Any]) -> dict[str, float]:
        """The relative error of each output, or WrongError."""
        errors = {}
        for name, output, want in zip(("y", "dx", "dweight"), found, self.want, strict=False):
            error = float((output.double() - want).norm() / want.norm())
            if output.shape != want.shape or not error <= TOLERANCE[self.case.dtype]:
                raise WrongError(f"{name} of shape {tuple(output.shape)} is {error:.3g} of its size off the oracle")
            errors[name] = error
        if len(errors) != len(self.want) or len(found) != len(self.want):
            raise WrongError(f"it must have {len(self.want)} results; got {len(found)}")
        return errors
