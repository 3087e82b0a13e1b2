"""Providers that take torch tensors: this project, torch's own operations, the compiled formula and the limits.

Forward is one bound call without gradients. Forward+backward is the forward pass and ``torch.autograd.grad`` for input
and parameters, with the same wrapper for all: a layer's cost in a training step, without accumulation into ``.grad``.
Backward is ``torch.autograd.grad`` alone, on a graph that is kept.
"""

import os
import shutil
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from rmsnorm.timing import Within
from rmsnorm_lab.bench.cases import EPS, PLAIN, Case
from rmsnorm_lab.bench.formulas import formula
from rmsnorm_lab.bench.oracle import Inputs
from rmsnorm_lab.bench.provider import Prepared, Provider, only


class TorchProvider(Provider):
    """An operation given by its forward pass; autograd does the backward pass."""

    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    def refuses(self, case: Case) -> str | None:
        return None

    @abstractmethod
    def forward(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        """A call without arguments that returns y, or y and the sum for ``add_rms_norm``."""

    def build(self, case: Case, inputs: Inputs) -> Prepared:
        computed = self.computes(case)
        if case.inplace:  # the other providers read the same inputs
            inputs = inputs | {name: inputs[name].clone() for name in ("x", "residual")}
        if not case.backward:
            return Prepared(self.forward(computed, inputs))
        leaves = {name: inputs[name].detach().requires_grad_() for name in computed.operands}
        make = _backward_alone if case.alone else _with_backward
        return Prepared(make(self.forward(computed, inputs | leaves), tuple(leaves.values()), inputs))


def _backward_alone(forward: Callable[[], Any], leaves: tuple[torch.Tensor, ...], inputs: Inputs) -> Callable[[], Any]:
    outputs = forward()
    gradients = (inputs["dy"], inputs["dh"]) if "dh" in inputs else inputs["dy"]
    return partial(torch.autograd.grad, outputs, leaves, gradients, retain_graph=True)


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
    """The addition and the norm as two operations."""
    x, residual = inputs["x"], inputs["residual"]

    def call() -> Any:
        h = x + residual
        return norm(h), h

    return call


class Ours(TorchProvider):
    name = "rmsnorm"
    summary = "this project, rmsnorm.torch, new output"
    colour = "#000000"
    wide_sums = True

    def refuses(self, case: Case) -> str | None:
        return "rmsnorm-out runs this project's in-place operations" if case.inplace else None

    def forward(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        return _ours(case, inputs)


class OursOut(TorchProvider):
    name = "rmsnorm-out"
    summary = "this project, rmsnorm.torch, into out= or in place"
    colour = "#000000"
    fresh = False

    def refuses(self, case: Case) -> str | None:
        if case.backward or case.op not in ("rms_norm", "rms_norm_heads", "layer_norm", "add_rms_norm_inplace"):
            return "out= exists for the forward passes of rms_norm and layer_norm"
        return None

    def forward(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        if case.inplace:
            return _ours(case, inputs, inplace=True)
        return _ours(case, inputs, out=torch.empty_like(inputs["x"]))


class OursSeparate(TorchProvider):
    name = "rmsnorm-separate"
    summary = "this project, the sum and its norm as two operations"
    colour = "#666666"

    def refuses(self, case: Case) -> str | None:
        return only(case, "add_rms_norm_quantized")

    def forward(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        import rmsnorm.torch as ours

        x, residual, weight, shape = inputs["x"], inputs["residual"], inputs["weight"], (case.n,)

        def call() -> Any:
            h = x + residual
            q, scale = ours.rms_norm_quantized(h, shape, weight, EPS, p=case.p)
            return q, scale, h

        return call


class OursFull(Ours):
    name = "rmsnorm-full"
    summary = "this project with p = 1, for comparison with pRMSNorm"
    colour = "#666666"

    def refuses(self, case: Case) -> str | None:
        return "it only replaces cases with p < 1" if case.p == 1 else super().refuses(case)

    def computes(self, case: Case) -> Case:
        return replace(case, p=1.0)


def _ours(case: Case, inputs: Inputs, **options: Any) -> Callable[[], Any]:
    import rmsnorm.torch as ours

    shape = (case.n,)
    if case.op == "layer_norm":
        return partial(ours.layer_norm, inputs["x"], shape, inputs["weight"], inputs["bias"], EPS, **options)
    functions: dict[str, Callable[..., Any]] = {
        "add_rms_norm": ours.add_rms_norm,
        "add_rms_norm_inplace": ours.add_rms_norm,
        "rms_norm_gated": ours.rms_norm_gated,
        "rms_norm_quantized": ours.rms_norm_quantized,
        "add_rms_norm_quantized": ours.add_rms_norm_quantized,
    }
    if case.p != 1:
        options["p"] = case.p
    *tensors, weight = (inputs[name] for name in case.operands)
    return partial(functions.get(case.op, ours.rms_norm), *tensors, shape, weight, EPS, **options)


class TorchRMSNorm(TorchProvider):
    name = "F.rms_norm"
    summary = "torch.nn.functional.rms_norm"
    colour = "#D55E00"

    def refuses(self, case: Case) -> str | None:
        return "computes no RMSNorm with p < 1" if case.p != 1 else only(case, "rms_norm", "add_rms_norm")

    def forward(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        options: dict[str, Any] = {"normalized_shape": (case.n,), "weight": inputs["weight"], "eps": EPS}
        if case.op == "add_rms_norm":
            return _added(partial(F.rms_norm, **options), inputs)
        return partial(F.rms_norm, inputs["x"], **options)


class TorchLayerNorm(TorchProvider):
    name = "F.layer_norm"
    summary = "torch.nn.functional.layer_norm, the norm that RMSNorm replaces"
    colour = "#0072B2"

    def refuses(self, case: Case) -> str | None:
        return "only compared with p = 1" if case.p != 1 else only(case, "rms_norm", "layer_norm")

    def computes(self, case: Case) -> Case:
        return replace(case, op="layer_norm")

    def forward(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        return partial(F.layer_norm, inputs["x"], (case.n,), inputs["weight"], inputs["bias"], EPS)


class Accelerated(TorchProvider):
    name = "accelerate"
    summary = "torch's function within rmsnorm.torch.accelerate(layer_norm=True)"
    colour = "#000000"
    marker = "v"
    wide_sums = True
    devices: ClassVar[tuple[str, ...]] = ("cpu",)

    def refuses(self, case: Case) -> str | None:
        return "torch computes no RMSNorm with p < 1" if case.p != 1 else only(case, "rms_norm", "layer_norm")

    def forward(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        torchs = TorchLayerNorm() if case.op == "layer_norm" else TorchRMSNorm()
        return torchs.forward(case, inputs)

    def build(self, case: Case, inputs: Inputs) -> Prepared:
        import rmsnorm.torch as ours

        return Prepared(Within(super().build(case, inputs).call, partial(ours.accelerate, layer_norm=True)))


class Formula(TorchProvider):
    name = "formula"
    summary = "the formula in torch operations, if torch has no function for it"

    def refuses(self, case: Case) -> str | None:
        return "torch has a function for it" if case.op in PLAIN else None

    def forward(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        return partial(formula(case), *(inputs[name] for name in case.operands))


class Compiled(TorchProvider):
    name = "torch.compile"
    summary = "the formula under torch.compile, recompiled for each shape"
    colour = "#CC79A7"

    def __init__(self) -> None:
        self._compiled: tuple[Case, Callable[..., Any]] | None = None

    def missing(self) -> str | None:
        if shutil.which(os.environ.get("CXX", "g++")) is None:
            return "needs a C++ compiler: install g++, or name one in CXX"
        return None

    def refuses(self, case: Case) -> str | None:
        return "Inductor of torch 2.13 fails on the formula in place: KeyError: 'buf1'" if case.inplace else None

    def forward(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        if self._compiled is None or self._compiled[0] != case:  # once per case, for all of its sets of inputs
            torch._dynamo.reset()  # all cases share one code object, which would reach the limit of recompilations
            torch._functorch.config.donated_buffer = not case.alone  # not in a graph that is kept
            self._compiled = case, torch.compile(formula(case), fullgraph=True, dynamic=False)
        return partial(self._compiled[1], *(inputs[name] for name in case.operands))


class Copy(Provider):
    name = "copy"
    summary = "limit: y.copy_(x), which moves the same bytes, into warm memory"
    colour = "#AAAAAA"
    fresh = False
    limit = True
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    def refuses(self, case: Case) -> str | None:
        return None

    def build(self, case: Case, inputs: Inputs) -> Prepared:
        if case.quantized:  # x and its codes: reads more than it writes, so copy half of both together
            half = inputs["x"].view(torch.uint8).flatten()[: (case.bytes + case.rows * case.n) // 2]
            residual = [inputs["residual"]] if case.adds else []
            return _moves([_move([array], fresh=self.fresh) for array in (*residual, half)])
        return _moves([_move([inputs[name] for name in reads], fresh=self.fresh) for reads in case.traffic])


class Clone(Copy):
    name = "clone"
    summary = "limit: x.clone(), which moves the same bytes, into new memory"
    fresh = True

    def refuses(self, case: Case) -> str | None:
        return "an in-place operation returns no new memory" if case.inplace else None


def _move(sources: list[torch.Tensor], fresh: bool) -> Callable[[], torch.Tensor]:
    """One array written from one (a copy) or two (their sum)."""
    if len(sources) == 1:
        return sources[0].clone if fresh else partial(torch.empty_like(sources[0]).copy_, sources[0])
    return partial(torch.add, *sources) if fresh else partial(torch.add, *sources, out=torch.empty_like(sources[0]))


def _moves(moves: list[Callable[[], torch.Tensor]]) -> Prepared:
    return Prepared(moves[0] if len(moves) == 1 else lambda: [move() for move in moves])
