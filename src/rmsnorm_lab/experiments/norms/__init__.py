"""The normalisers under comparison: one entry each, which the command line, networks, timing, tables and figures read.

A new one is a subclass of :class:`base.Normaliser` and its entry, below or by :func:`register` at run time; own.py
registers norms from the user's files. Nothing heavy is imported here, so that the command line can refuse a wrong name
at once.
"""

import importlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rmsnorm_lab.colours import OF_NORM
from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.recipes.common import P

if TYPE_CHECKING:
    from rmsnorm_lab.experiments.norms.base import Normaliser

EVERYWHERE = ("translation", "transformer", "images", "retrieval", "reading", "language")
OF_ROWS = ("translation", "transformer", "language")
RECURRENT = ("translation", "retrieval", "reading")


@dataclass(frozen=True)
class Norm:
    """One normaliser."""

    name: str
    """In ``--norm`` and in records."""
    label: str
    """In tables and figures."""
    colour: str
    """Of lines; near Okabe and Ito's palette, which the colour-blind can distinguish, on white and on dark alike."""
    line: Any
    """Matplotlib's line style: it distinguishes lines that lie on top of each other."""
    implementation: str | Callable[[str, float], "Normaliser"]
    """(kernels, p) -> what models are given; or "module:class" of this package, imported when it is needed."""
    tasks: tuple[str, ...] = ()
    """The tasks in whose networks it makes sense."""
    by_default: tuple[str, ...] = ()
    """The tasks that compare it unless the user names others."""
    takes_p: bool = False
    """Whether the recipe's p decides what it computes."""
    layer_of: str | None = None
    """The normaliser whose layer it shares, if it differs from it in recurrences alone."""
    source: str | None = None
    """Where it is from if it is the user's own: "my_norm.py:MyNorm", as the command line had it."""

    def made(self, kernels: str, p: float) -> "Normaliser":
        """What models are given.

        Args:
            kernels: one of recipes.common.KERNELS.
            p: the recipe's.
        """
        if not isinstance(self.implementation, str):
            return self.implementation(kernels, p)
        module, _, name = self.implementation.partition(":")
        made: Normaliser = getattr(importlib.import_module(f"{__name__}.{module}"), name)(kernels, p)
        return made


REGISTRY: dict[str, Norm] = {}
"""By name, in the order of tables."""


def register(norm: Norm) -> None:
    """Add a normaliser under a new name."""
    if norm.name in REGISTRY:
        raise ValueError(f"a normaliser must have a name of its own; {norm.name!r} is taken. Choose another one.")
    REGISTRY[norm.name] = norm


def entry(name: str) -> Norm:
    """The normaliser of that name; if it is not registered, one that can be shown and not trained."""
    if name in REGISTRY:
        return REGISTRY[name]
    if name in TIMED_ONLY:
        return TIMED_ONLY[name]
    colour, line = look_of_other(name)
    return Norm(name, label=name, colour=colour, line=line, implementation=_unknown(name))


_COLOURS = ("#444444", "#882255", "#332288", "#117733", "#999933", "#AA4499")
_LINES: tuple[Any, ...] = ("-", "--", "-.", (0, (5, 1, 1, 1)))


def look_of_other(name: str) -> tuple[str, Any]:
    """Colour and line style of a normaliser without an entry below: by its name, so the same in every figure."""
    number = zlib.crc32(name.encode(errors="surrogatepass"))  # a file of the user's may have a name that is no UTF-8
    return _COLOURS[number % len(_COLOURS)], _LINES[number // len(_COLOURS) % len(_LINES)]


def _unknown(name: str) -> Callable[[str, float], "Normaliser"]:
    def refuse(kernels: str, p: float) -> "Normaliser":
        raise UserError(f"the normaliser must be one of {', '.join(REGISTRY)}; got {name!r}. Register it first.")

    return refuse


def made(name: str, kernels: str, p: float = P) -> "Normaliser":
    """The normaliser of that name, for models; see :meth:`Norm.made`."""
    return entry(name).made(kernels, p)


def label(name: str) -> str:
    """The normaliser's name in tables and figures."""
    return entry(name).label


def own_source(name: str) -> str | None:
    """Where the normaliser is from if it is the user's own."""
    return entry(name).source


def place(name: str) -> int:
    """Where it is in the order of tables; an unknown one comes last."""
    return list(REGISTRY).index(name) if name in REGISTRY else len(REGISTRY)


def of_task(task: str) -> tuple[str, ...]:
    """The names of the normalisers that make sense in a task, in the order of tables."""
    return tuple(name for name, norm in REGISTRY.items() if task in norm.tasks)


def of_user(source: str) -> str:
    """The name of a norm of the user's own, "my_norm.py:MyNorm", which is imported and registered."""
    name: str = importlib.import_module(f"{__name__}.own").registered(source)
    return name


def by_default(task: str) -> tuple[str, ...]:
    """Those that a task compares unless the user names others."""
    return tuple(name for name, norm in REGISTRY.items() if task in norm.by_default)


for _norm in (
    Norm("none", "no norm", OF_NORM["none"], (0, (1, 1)), "base:NoNorm", EVERYWHERE, EVERYWHERE),
    Norm("l2", "L2-Norm", "#CC79A7", (0, (1, 1)), "row_norms:L2", (*RECURRENT, "language"), ("translation",)),
    Norm(
        "weight",
        "WeightNorm",
        "#56B4E9",
        (0, (5, 1, 1, 1)),
        "weight:Weight",
        tasks=(*RECURRENT, "images"),
        by_default=("translation", "images"),
    ),
    Norm(
        "batch",
        "BatchNorm",
        "#D55E00",
        "-",
        "batch:Batch",
        tasks=("images", "reading", "language"),
        by_default=("images", "reading"),
    ),
    Norm(
        "batch-everywhere",
        "BatchNorm-Everywhere",
        "#8C510A",
        (0, (5, 1)),
        "batch:BatchEverywhere",
        tasks=("reading",),
        layer_of="batch",
    ),
    Norm("group", "GroupNorm", "#A6761D", "--", "group:Group", ("language",)),
    Norm("layer", "LayerNorm", OF_NORM["layer"], "-", "row_norms:Layer", EVERYWHERE, EVERYWHERE),
    Norm("rms", "RMSNorm", OF_NORM["rms"], "--", "row_norms:RMS", EVERYWHERE, EVERYWHERE),
    Norm("prms", "pRMSNorm", OF_NORM["prms"], "-.", "row_norms:PartialRMS", EVERYWHERE, EVERYWHERE, takes_p=True),
    Norm("dyt", "DyT", "#8A6FD1", (0, (3, 1, 1, 1, 1, 1)), "dyt:DyT", ("language",)),
):
    register(_norm)

TIMED_ONLY = {
    "rms-torch": Norm("rms-torch", "RMSNorm (torch's)", "#5B5BD6", (0, (5, 1)), "row_norms:TorchRMS", OF_ROWS)
}
"""What the demonstration times beside the registry's: torch's RMSNorm computes what ours does, and is not trained."""
