"""Providers of whole models: transformers' own, with torch's norms, accelerated, swapped, compiled, without norms."""

import os
import shutil
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from rmsnorm.timing import Within
from rmsnorm_lab.bench.cases import Case
from rmsnorm_lab.bench.model_cases import norms, outputs, step, stock, twin
from rmsnorm_lab.bench.oracle import Inputs
from rmsnorm_lab.bench.provider import Prepared, Provider


class ModelProvider(Provider):
    """The model with something done to its norms."""

    kind = "model"
    needs: ClassVar[tuple[str, ...]] = ("transformers",)

    def refuses(self, case: Case) -> str | None:
        return None

    @abstractmethod
    def change(self, model: nn.Module) -> Callable[..., Any]:
        """The model, whose modules are the provider's own, to be called."""

    def build(self, case: Case, inputs: Inputs) -> Prepared:
        model = twin(stock(case.n, case.dtype)).train(case.backward)
        changed = self.change(model)
        parameters = [*model.parameters()]
        return Prepared(step(case, changed, inputs, parameters), partial(outputs, case, parameters))


class Stock(ModelProvider):
    name, summary, colour = "stock", "transformers' model, eager", "#D55E00"

    def change(self, model: nn.Module) -> Callable[..., Any]:
        return model


class TorchNorms(ModelProvider):
    name, summary, colour = "nn.RMSNorm", "the same with torch.nn.RMSNorm for its norms", "#E69F00"

    def change(self, model: nn.Module) -> Callable[..., Any]:
        for name, module in [*model.named_modules()]:
            if module in norms(model):
                torchs = nn.RMSNorm(module.weight.shape, module.variance_epsilon)
                torchs.weight = module.weight
                model.set_submodule(name, torchs)
        return model


class Accelerated(TorchNorms):
    name, summary, colour = "accelerated", "nn.RMSNorm's model within rmsnorm.torch.accelerate()", "#56B4E9"

    def build(self, case: Case, inputs: Inputs) -> Prepared:
        import rmsnorm.torch as ours

        prepared = super().build(case, inputs)
        return Prepared(Within(prepared.call, ours.accelerate), prepared.outputs)


class Swapped(ModelProvider):
    name, summary, colour = "swapped", "after rmsnorm.torch.swap_norms(model)", "#000000"

    def change(self, model: nn.Module) -> Callable[..., Any]:
        from rmsnorm.torch import swap_norms

        left = [row for row in swap_norms(model).rows if row.why]
        if left:
            raise RuntimeError(f"swap_norms must serve every norm; it left {left[0].name}: {left[0].why}")
        return model


class _Compiled:
    """A provider whose model is compiled too."""

    def missing(self) -> str | None:
        if shutil.which(os.environ.get("CXX", "g++")) is None:
            return "needs a C++ compiler: install g++, or name one in CXX"
        return super().missing()  # type: ignore[misc]

    def change(self, model: nn.Module) -> Callable[..., Any]:
        changed: Callable[..., Any] = torch.compile(super().change(model), dynamic=False)  # type: ignore[misc]
        return changed


class CompiledStock(_Compiled, Stock):
    name, summary, colour = "compiled", "torch.compile of transformers' model", "#CC79A7"


class CompiledSwapped(_Compiled, Swapped):
    name, summary, colour = "compiled-swapped", "torch.compile of the swapped model", "#666666"


class NoNorm(ModelProvider):
    name, summary, colour = "no-norm", "limit: the model without its norms", "#AAAAAA"
    limit = True

    def change(self, model: nn.Module) -> Callable[..., Any]:
        for norm in norms(model):
            norm.forward = lambda x: x
        return model


def providers() -> list[Provider]:
    """The model as it is first, the limit last."""
    return [Stock(), TorchNorms(), Accelerated(), Swapped(), CompiledStock(), CompiledSwapped(), NoNorm()]
