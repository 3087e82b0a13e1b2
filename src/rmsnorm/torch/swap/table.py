"""What was swapped and what was left, as rows and as a table."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from rmsnorm.torch.columns import columns
from rmsnorm.torch.swap.conventions import Convention
from rmsnorm.torch.swap.gated import GatedConvention

_SHORT = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


class Row(NamedTuple):
    """One norm of a model."""

    name: str
    """The module's name in the model; empty for the model itself."""
    cls: str
    """The module's class."""
    convention: str | None
    """The call that serves it; None if it was left."""
    eps: float | None
    dtypes: str
    """The dtypes of input/gain that were verified; others take the module's own forward."""
    why: str | None
    """Why it was left; None if it was swapped."""

    @classmethod
    def of(cls, name: str, module: nn.Module, verdict: Convention | GatedConvention | str) -> "Row":
        """From what was found out."""
        kind = type(module).__name__
        if isinstance(verdict, str):
            return cls(name, kind, None, None, "", verdict)
        dtypes = " ".join("/".join(_SHORT[str(t).removeprefix("torch.")] for t in pair) for pair, _ in verdict.pairs)
        return cls(name, kind, str(verdict), verdict.eps, dtypes, None)


def table(rows: Sequence[Row]) -> str:
    """Columns of equal width; a norm that was left has its reason in place of the dtypes."""
    head = ("module", "class", "served by", "eps", "input/gain, or why it is left")
    lines = [
        (r.name or "(model)", r.cls, r.convention or "left", "" if r.eps is None else f"{r.eps:.3g}", r.why or r.dtypes)
        for r in rows
    ]
    swapped = sum(r.why is None for r in rows)
    return f"{columns([head, *lines])}\n{swapped} swapped, {len(rows) - swapped} left"
