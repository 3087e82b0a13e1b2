"""Providers of QK-norm with a rotary embedding: this project's one call, and norms with torch's rotary expression."""

import os
import shutil
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rmsnorm_lab.bench.cases import EPS, Case
from rmsnorm_lab.bench.oracle import Inputs
from rmsnorm_lab.bench.provider import Prepared, Provider
from rmsnorm_lab.bench.rotary_cases import Function, separate, step


class RotaryProvider(Provider):
    """One function of query, key, cosines, sines and gains; autograd does the backward pass."""

    kind = "rotary"

    def refuses(self, case: Case) -> str | None:
        return None

    @abstractmethod
    def function(self) -> Function:
        """Of tensors."""

    def build(self, case: Case, inputs: Inputs) -> Prepared:
        return Prepared(step(case, self.function(), inputs))


class Ours(RotaryProvider):
    name, summary, colour = "rmsnorm", "rmsnorm.torch.rms_norm_rotary", "#000000"

    def function(self) -> Function:
        from rmsnorm.torch import rms_norm_rotary

        return partial(rms_norm_rotary, eps=EPS)


class OursSeparate(RotaryProvider):
    name, summary, colour = "rmsnorm-separate", "this project's norms and torch's rotary expression", "#666666"

    def function(self) -> Function:
        from rmsnorm.torch import rms_norm

        return separate(lambda x, gain: rms_norm(x, gain.shape, gain, EPS))


def _torchs(x: Tensor, gain: Tensor) -> Tensor:
    return F.rms_norm(x, gain.shape, gain, EPS)


class Separate(RotaryProvider):
    name, summary, colour = "F.rms_norm", "torch's norms and rotary expression", "#D55E00"

    def function(self) -> Function:
        return separate(_torchs)


class Compiled(RotaryProvider):
    name, summary, colour = "torch.compile", "the same, compiled for exactly this shape", "#CC79A7"

    def missing(self) -> str | None:
        if shutil.which(os.environ.get("CXX", "g++")) is None:
            return "needs a C++ compiler: install g++, or name one in CXX"
        return super().missing()

    def function(self) -> Function:
        torch._dynamo.reset()  # each case has its own graph
        return torch.compile(separate(_torchs), fullgraph=True, dynamic=False)


class Clone(RotaryProvider):
    name, summary, colour = "clone", "limit: query and key copied, for gradients also added to theirs", "#AAAAAA"
    limit = True

    def function(self) -> Function:
        raise NotImplementedError

    def build(self, case: Case, inputs: Inputs) -> Prepared:
        moves: list[Callable[[], Any]] = [inputs[name].clone for name in ("q", "k")]
        if case.backward:
            moves += [partial(torch.add, inputs[f"dy_{name}"], inputs[name]) for name in ("q", "k")]
        return Prepared(lambda: [move() for move in moves])


def providers() -> list[Provider]:
    """This project's first, the limit last."""
    return [Ours(), OursSeparate(), Separate(), Compiled(), Clone()]
