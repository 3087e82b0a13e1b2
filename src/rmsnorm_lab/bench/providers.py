"""What a provider of the benchmark is, and the list of them."""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rmsnorm_lab.bench.cases import Case, named
from rmsnorm_lab.bench.oracle import Inputs


@dataclass(frozen=True)
class Prepared:
    """A call ready to be timed: nothing in it but the operation, its arguments bound.

    ``outputs`` turns what the call returned into the arrays that ``Case.outputs`` names; it is not timed.
    ``spins_s`` is how long its threads keep a processor after the last call: the others wait that long.
    """

    call: Callable[[], Any]
    outputs: Callable[[Any], Sequence[Any]] = lambda result: result if isinstance(result, tuple) else (result,)
    spins_s: float = 0.0


class Provider(ABC):
    """One implementation. Its framework is imported when it is asked for something, not before."""

    name: ClassVar[str]
    summary: ClassVar[str]
    fresh: ClassVar[bool] = True
    """Whether each call returns new memory; the others write into the same, warm memory every time."""
    limit: ClassVar[bool] = False
    """Whether this is no norm but the traffic of memory that a norm cannot do without; not verified."""
    recurrent: ClassVar[bool] = False
    """Whether it is a recurrent network; the others are norms, and neither is asked for the other's cases."""
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    """Where it runs."""
    needs: ClassVar[tuple[str, ...]] = ()
    """The packages that must be installed, beside torch and this project."""

    def missing(self) -> str | None:
        """Why it cannot be used on this machine, and what to do; None if it can."""
        lacking = [package for package in self.needs if importlib.util.find_spec(package) is None]
        return f"not installed: pip install {' '.join(lacking)}" if lacking else None

    @abstractmethod
    def refuses(self, case: Case) -> str | None:
        """Why it does not serve the case; None if it does."""

    def computes(self, case: Case) -> Case:
        """What it computes for the case: the case itself, or for a stand-in what its user would call instead."""
        return case

    @abstractmethod
    def build(self, case: Case, inputs: Inputs) -> Prepared:
        """The call, its arguments in the framework's own form; what it takes to get there is not timed."""


def only(case: Case, *ops: str) -> str | None:
    """The reason of a provider that serves ``ops`` alone."""
    return None if case.op in ops else f"does not compute {case.op}"


def all_providers(threads: int) -> list[Provider]:
    """Every known provider, this project's first, the limits last.

    ``threads`` is what providers with a thread pool of fixed size get: they serve only cases of that many.
    """
    from rmsnorm_lab.bench import array_providers, gpu_providers, recurrent_providers, torch_providers

    return [
        torch_providers.Ours(),
        torch_providers.OursOut(),
        torch_providers.OursFull(),
        array_providers.OursNumPy(threads),
        torch_providers.TorchRMSNorm(),
        torch_providers.TorchLayerNorm(),
        torch_providers.Formula(),
        torch_providers.Compiled(),
        *gpu_providers.providers(),
        array_providers.OnnxRuntime(),
        array_providers.OnnxRuntimeOut(),
        array_providers.Jax(threads),
        array_providers.NumPy(),
        torch_providers.Clone(),
        torch_providers.Copy(),
        *recurrent_providers.providers(),
    ]


def choose(providers: Sequence[Provider], names: Sequence[str] | None) -> list[Provider]:
    """Those of the given names, in the list's order; all of them if no names are given."""
    for name in names or ():
        named("provider", name, (provider.name for provider in providers))
    return [provider for provider in providers if not names or provider.name in names]
