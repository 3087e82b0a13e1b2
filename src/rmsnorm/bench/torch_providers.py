"""Providers that take torch tensors: this project, torch's own operations, the compiled formula and the limits.

Forward is one bound call without gradients. Forward+backward is the forward and ``torch.autograd.grad`` for input and
parameters, the same wrapper for all: what a layer costs inside a training step, without an optimiser's accumulation.
"""

import os
import shutil
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from rmsnorm.bench.cases import EPS, Case
from rmsnorm.bench.oracle import Inputs
from rmsnorm.bench.providers import Prepared, Provider


class TorchProvider(Provider):
    """An operation given as a forward; autograd makes the rest of it."""

    def refuses(self, case: Case) -> str | None:
        return None

    @abstractmethod
    def forward(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        """A call without arguments that returns y, or y and the sum for ``add_rms_norm``."""

    def build(self, case: Case, inputs: Inputs) -> Prepared:
        computed = self.computes(case)
        if not case.backward:
            return Prepared(self.forward(computed, inputs))
        names = ["x", "weight"]
        if computed.op == "add_rms_norm":
            names.insert(1, "residual")
        if computed.op == "layer_norm":
            names.append("bias")
        leaves = {name: inputs[name].detach().requires_grad_() for name in names}
        return Prepared(_with_backward(self.forward(computed, inputs | leaves), tuple(leaves.values()), inputs))


def _with_backward(forward: Callable[[], Any], leaves: tuple[torch.Tensor, ...], inputs: Inputs) -> Callable[[], Any]:
    grad, dy = torch.autograd.grad, inputs["dy"]
    if "dh" in inputs:
        both = (dy, inputs["dh"])

        def step() -> Any:
            outputs = forward()
            return (*outputs, *grad(outputs, leaves, both))
    else:

        def step() -> Any:
            y = forward()
            return (y, *grad(y, leaves, dy))

    return step


def _added(norm: Callable[[torch.Tensor], torch.Tensor], inputs: Inputs) -> Callable[[], Any]:
    """The addition and the norm as two operations, as they are written without a fused one."""
    x, residual = inputs["x"], inputs["residual"]

    def call() -> Any:
        h = x + residual
        return norm(h), h

    return call


class Ours(TorchProvider):
    name = "rmsnorm"
    summary = "this project, rmsnorm.torch, new output"

    def forward(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        return _ours(case, inputs)


class OursOut(TorchProvider):
    name = "rmsnorm-out"
    summary = "this project, rmsnorm.torch, into out="
    fresh = False

    def refuses(self, case: Case) -> str | None:
        if case.backward or case.op == "add_rms_norm":
            return "out= is offered for the forward of rms_norm and layer_norm"
        return None

    def forward(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        return _ours(case, inputs, out=torch.empty_like(inputs["x"]))


class OursFull(Ours):
    name = "rmsnorm-full"
    summary = "this project with p = 1, beside pRMSNorm"

    def refuses(self, case: Case) -> str | None:
        return "a stand-in for p < 1 only" if case.p == 1 else None

    def computes(self, case: Case) -> Case:
        return replace(case, p=1.0)


def _ours(case: Case, inputs: Inputs, **options: Any) -> Callable[[], Any]:
    import rmsnorm.torch as ours

    shape = (case.n,)
    if case.op == "layer_norm":
        return partial(ours.layer_norm, inputs["x"], shape, inputs["weight"], inputs["bias"], EPS, **options)
    if case.p != 1:
        options["p"] = case.p
    if case.op == "add_rms_norm":
        return partial(ours.add_rms_norm, inputs["x"], inputs["residual"], shape, inputs["weight"], EPS, **options)
    return partial(ours.rms_norm, inputs["x"], shape, inputs["weight"], EPS, **options)


class TorchRMSNorm(TorchProvider):
    name = "F.rms_norm"
    summary = "torch.nn.functional.rms_norm"

    def refuses(self, case: Case) -> str | None:
        return "no RMSNorm of a part of the row" if case.p != 1 else _not_for(case, "layer_norm")

    def forward(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        options: dict[str, Any] = {"normalized_shape": (case.n,), "weight": inputs["weight"], "eps": EPS}
        if case.op == "add_rms_norm":
            return _added(partial(F.rms_norm, **options), inputs)
        return partial(F.rms_norm, inputs["x"], **options)


class TorchLayerNorm(TorchProvider):
    name = "F.layer_norm"
    summary = "torch.nn.functional.layer_norm, the norm to replace"

    def refuses(self, case: Case) -> str | None:
        return "compared at p = 1" if case.p != 1 else _not_for(case, "add_rms_norm")

    def computes(self, case: Case) -> Case:
        return replace(case, op="layer_norm")

    def forward(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        return partial(F.layer_norm, inputs["x"], (case.n,), inputs["weight"], inputs["bias"], EPS)


def _not_for(case: Case, op: str) -> str | None:
    return f"does not compute {op}" if case.op == op else None


class Compiled(TorchProvider):
    name = "torch.compile"
    summary = "the formula under torch.compile, recompiled for each shape"

    def missing(self) -> str | None:
        if shutil.which(os.environ.get("CXX", "g++")) is None:
            return "needs a C++ compiler: install g++, or name one in CXX"
        return None

    def forward(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        torch._dynamo.reset()  # one code object serves all cases and would reach the limit of recompilations
        formula = torch.compile(formulas(case), fullgraph=True, dynamic=False)
        if case.op == "layer_norm":
            return partial(formula, inputs["x"], inputs["weight"], inputs["bias"])
        if case.op == "add_rms_norm":
            return partial(formula, inputs["x"], inputs["residual"], inputs["weight"])
        return partial(formula, inputs["x"], inputs["weight"])


def formulas(case: Case) -> Callable[..., Any]:
    """The operation as a line of torch, computed in float32."""
    from rmsnorm.spec import partial_count

    k = partial_count(case.n, case.p)

    def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        a = x.float()
        mean_square = a[..., :k].square().mean(-1, keepdim=True)
        return (a * torch.rsqrt(mean_square + EPS) * weight.float()).to(x.dtype)

    def add_rms_norm(
        x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        h = x + residual
        return rms_norm(h, weight), h

    def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        a = x.float()
        centred = a - a.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        return (centred * torch.rsqrt(variance + EPS) * weight.float() + bias.float()).to(x.dtype)

    choices: dict[str, Callable[..., Any]]
    choices = {"rms_norm": rms_norm, "add_rms_norm": add_rms_norm, "layer_norm": layer_norm}
    return choices[case.op]


class Copy(Provider):
    name = "copy"
    summary = "limit: the same bytes read and written, y.copy_(x), into warm memory"
    fresh = False
    limit = True

    def refuses(self, case: Case) -> str | None:
        return None

    def build(self, case: Case, inputs: Inputs) -> Prepared:
        return _moves([_move([inputs[name] for name in reads], fresh=self.fresh) for reads in case.traffic])


class Clone(Copy):
    name = "clone"
    summary = "limit: the same bytes read and written, x.clone(), into new memory"
    fresh = True


def _move(sources: list[torch.Tensor], fresh: bool) -> Callable[[], torch.Tensor]:
    """One array written from one (a copy) or two (their sum)."""
    if len(sources) == 1:
        return sources[0].clone if fresh else partial(torch.empty_like(sources[0]).copy_, sources[0])
    return partial(torch.add, *sources) if fresh else partial(torch.add, *sources, out=torch.empty_like(sources[0]))


def _moves(moves: list[Callable[[], torch.Tensor]]) -> Prepared:
    return Prepared(moves[0] if len(moves) == 1 else lambda: [move() for move in moves])
