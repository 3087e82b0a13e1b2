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
    """A call ready to be timed: only the operation, with its arguments bound.

    ``outputs`` turns what the call returned into the arrays that ``Case.outputs`` names; it is not timed.
    ``spins_s`` is how long its threads keep a processor after the last call. The next provider waits that long.
    """

    call: Callable[[], Any]
    outputs: Callable[[Any], Sequence[Any]] = lambda result: result if isinstance(result, tuple) else (result,)
    spins_s: float = 0.0


class Provider(ABC):
    """One implementation. Its framework is imported when the provider is first used."""

    name: ClassVar[str]
    summary: ClassVar[str]
    colour: ClassVar[str | None] = None
    """Of its lines in figures: near Okabe and Ito's palette, which colour-blind readers can distinguish; this project's
    norms are the darkest, and recurrent networks have that of their norm. None: the next of Matplotlib's own."""
    marker: ClassVar[str] = "o"
    """Of the points of its lines: it distinguishes providers of one norm, which have one colour."""
    fresh: ClassVar[bool] = True
    """Whether each call returns new memory. If not, every call writes into the same, warm memory."""
    limit: ClassVar[bool] = False
    """Whether this is a limit instead of a norm: the memory traffic that every norm needs. It is not verified."""
    wide_sums: ClassVar[bool] = False
    """Whether it sums over rows in float32 at least; gradients of parameters have a narrow tolerance then."""
    kind: ClassVar[str] = "norm"
    """``Case.kind`` of the cases that it serves."""
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    """The devices that it runs on."""
    needs: ClassVar[tuple[str, ...]] = ()
    """The packages that must be installed, besides torch and this project."""

    def missing(self) -> str | None:
        """Why it cannot be used on this machine, and what to do. None: it can."""
        return not_installed(*self.needs)

    @abstractmethod
    def refuses(self, case: Case) -> str | None:
        """Why it does not support the case. None: it does."""

    def computes(self, case: Case) -> Case:
        """What it computes for the case: the case itself, or for a stand-in the operation that is used instead."""
        return case

    @abstractmethod
    def build(self, case: Case, inputs: Inputs) -> Prepared:
        """The call, with its arguments converted for the framework. Building it is not timed."""


def not_installed(*packages: str) -> str | None:
    """How to install those of the packages that are missing. None: none is."""
    lacking = [package for package in packages if importlib.util.find_spec(package) is None]
    return f"not installed: pip install {' '.join(lacking)}" if lacking else None


def only(case: Case, *ops: str) -> str | None:
    """Why a provider that supports only ``ops`` does not support the case."""
    return None if case.op in ops else f"does not compute {case.op}"


def one_pool(case: Case, threads: int) -> str | None:
    """Why a provider whose pool has ``threads`` in this process does not support the case."""
    if case.threads == threads:
        return None
    return f"its thread pool has a fixed size per process, here {threads}: measure with --threads {case.threads}"
