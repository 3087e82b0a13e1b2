"""Providers of recurrent networks: this project's, torch's own, loops of operators, and the products alone."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rmsnorm_lab.bench.cases import EPS, Case, P
from rmsnorm_lab.bench.oracle import Inputs
from rmsnorm_lab.bench.provider import Prepared, Provider
from rmsnorm_lab.bench.recurrent_oracle import loop, parameter_names
from rmsnorm_lab.colours import OF_NORM

LABELS = {"none": "no norm", "layer": "LayerNorm", "rms": "RMSNorm", "prms": f"pRMSNorm of the first {100 * P:g} %"}


class RecurrentProvider(Provider):
    """A network with one of the norms, where the paper has it."""

    kind = "recurrent"

    def __init__(self, name: str, norm: str, summary: str) -> None:
        self.name, self.summary, self.colour = name, summary, OF_NORM[norm]  # type: ignore[misc]  # one per norm
        self.norm = norm

    def refuses(self, case: Case) -> str | None:
        return None

    def computes(self, case: Case) -> Case:
        return replace(case, norm=self.norm)

    @abstractmethod
    def network(self, case: Case, inputs: Inputs) -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
        """x ↦ y, and the parameters, which require gradients, in the order of ``parameter_names``."""

    def build(self, case: Case, inputs: Inputs) -> Prepared:
        run, parameters = self.network(self.computes(case), inputs)
        if not case.backward:
            return Prepared(torch.no_grad()(lambda: run(inputs["x"])))
        x, dy = inputs["x"].detach().requires_grad_(), inputs["dy"]
        leaves = (x, *parameters)

        def step() -> tuple[Tensor, ...]:
            y = run(x)
            return (y, *torch.autograd.grad(y, leaves, dy))

        return Prepared(step)


class Ours(RecurrentProvider):
    def network(self, case: Case, inputs: Inputs) -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
        import rmsnorm.torch as ours

        how: dict[str, Any] = {"norm": {"none": None, "prms": "rms"}.get(case.norm, case.norm), "eps": EPS}
        how |= {"p": P} if case.norm == "prms" else {}
        return _filled({"gru": ours.GRU, "lstm": ours.LSTM}[case.op](case.features, case.n, **how), case, inputs)


class TorchModule(RecurrentProvider):
    marker = "^"

    def network(self, case: Case, inputs: Inputs) -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
        return _filled({"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[case.op](case.features, case.n), case, inputs)


def _filled(
    module: torch.nn.Module, case: Case, inputs: Inputs
) -> tuple[Callable[[Tensor], Tensor], list[torch.Tensor]]:
    module = module.to(getattr(torch, case.dtype))
    parameters = [getattr(module, f"{name}_l0") for name in parameter_names(case)]
    with torch.no_grad():
        for parameter, name in zip(parameters, parameter_names(case), strict=True):
            parameter.copy_(inputs[name])
    return lambda x: module(x)[0], parameters


class Loop(RecurrentProvider):
    marker = "s"

    def network(self, case: Case, inputs: Inputs) -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
        parameters = {name: inputs[name].detach().requires_grad_() for name in parameter_names(case)}
        given = inputs | parameters
        return lambda x: loop(case, given | {"x": x}), list(parameters.values())


class Products(RecurrentProvider):
    """The matrix products that every network needs; those of the weights' gradients over all steps at once."""

    limit = True

    def network(self, case: Case, inputs: Inputs) -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
        raise NotImplementedError("it has no results")

    def build(self, case: Case, inputs: Inputs) -> Prepared:
        x, w_ih, w_hh = inputs["x"].flatten(0, 1), inputs["weight_ih"], inputs["weight_hh"]
        turned = w_hh.t().contiguous()
        h, side = inputs["dy"][0].contiguous(), x.new_empty(case.batch, len(w_hh))
        dh, dy = torch.empty_like(h), inputs["dy"].flatten(0, 1)
        sides = x.new_ones(len(x), len(w_hh)) if case.backward else None

        def call() -> None:
            torch.mm(x, w_ih.t())
            for _ in range(case.steps):
                torch.mm(h, turned, out=side)
            if sides is not None:
                for _ in range(case.steps):
                    torch.mm(side, w_hh, out=dh)
                sides.t().mm(dy), sides.t().mm(x), sides.mm(w_ih)

        return Prepared(call)


def providers() -> list[Provider]:
    """This project's first, the limit last."""
    own = {norm: "rmsnorm" if norm == "rms" else f"rmsnorm-{norm}" for norm in ("rms", "prms", "layer", "none")}
    return [
        *(Ours(name, norm, f"this project's GRU and LSTM, {LABELS[norm]}") for norm, name in own.items()),
        TorchModule("torch.nn", "none", "torch.nn.GRU and LSTM, which have no norm"),
        *(Loop(f"loop-{norm}", norm, f"a loop of torch operators, {LABELS[norm]}") for norm in LABELS),
        Products("products", "none", "limit: the matrix products alone"),
    ]
