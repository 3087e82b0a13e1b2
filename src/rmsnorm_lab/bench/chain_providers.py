"""Providers of compiled chains: torch's norm, and this project's alone and with the addition."""

import os
import shutil
from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from rmsnorm_lab.bench.cases import EPS, Case
from rmsnorm_lab.bench.chain_cases import chain, step
from rmsnorm_lab.bench.oracle import Inputs
from rmsnorm_lab.bench.provider import Prepared, Provider


class ChainProvider(Provider):
    """The chain of one norm, compiled by torch.compile with static shapes."""

    kind = "chain"

    def missing(self) -> str | None:
        if shutil.which(os.environ.get("CXX", "g++")) is None:
            return "needs a C++ compiler: install g++, or name one in CXX"
        return super().missing()

    def refuses(self, case: Case) -> str | None:
        return None

    @abstractmethod
    def link(self, h: Tensor, branch: Tensor | None, gain: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of stream and branch, and its norm; there is no branch at the start."""

    def build(self, case: Case, inputs: Inputs) -> Prepared:
        compiled = torch.compile(chain(self.link), fullgraph=True, dynamic=False)
        return Prepared(step(case, compiled, inputs))


class Stock(ChainProvider):
    name, summary, colour = "chain-F.rms_norm", "a compiled chain of additions and F.rms_norm", "#CC79A7"

    def link(self, h: Tensor, branch: Tensor | None, gain: Tensor) -> tuple[Tensor, Tensor]:
        h = h if branch is None else h + branch
        return h, F.rms_norm(h, gain.shape, gain, EPS)


class Norm(ChainProvider):
    name, summary, colour = "chain-rms_norm", "the same of rmsnorm.torch.rms_norm", "#666666"

    def link(self, h: Tensor, branch: Tensor | None, gain: Tensor) -> tuple[Tensor, Tensor]:
        from rmsnorm.torch import rms_norm

        h = h if branch is None else h + branch
        return h, rms_norm(h, gain.shape, gain, EPS)


class AddNorm(ChainProvider):
    name, summary, colour = "chain-add_rms_norm", "the same of rmsnorm.torch.add_rms_norm", "#000000"

    def link(self, h: Tensor, branch: Tensor | None, gain: Tensor) -> tuple[Tensor, Tensor]:
        from rmsnorm.torch import add_rms_norm, rms_norm

        if branch is None:
            return h, rms_norm(h, gain.shape, gain, EPS)
        normed, h = add_rms_norm(branch, h, gain.shape, gain, EPS)
        return h, normed


def providers() -> list[Provider]:
    """torch's first."""
    return [Stock(), Norm(), AddNorm()]
