"""What a provider of the benchmark is: one implementation, and how its calls are prepared."""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rmsnorm_lab.bench.cases import Case
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
