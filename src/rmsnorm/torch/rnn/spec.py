"""What a recurrent layer is asked to compute: where its norms are, its parameters, and the checks of both.

A cell has two sides, a = W_ih x + b_ih and c = W_hh h. Each holds the gates one after another in torch's order (GRU: r,
z, n; LSTM: i, f, g, o). A *segment* is a run of gates that share one statistic.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor

from rmsnorm.spec import MismatchError, check_eps, check_p, partial_count

NORMS = ("rms", "layer", None)
GATES = {"GRU": 3, "LSTM": 4}

Segments = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Placement:
    """What is normalised: segments of the input's side, of the state's side, or of their sum; the LSTM's cell state."""

    input: Segments = ()
    state: Segments = ()
    joint: bool = False
    """The segments of the state's side are taken of a + c; the input's side has none."""
    cell: bool = False
    bias_inside: bool = True
    """Whether b_ih is added before the norm of the input's side. b_hh is always added after the state's."""
    update_bias: float = 0.0
    """Added to the GRU's z before its logistic function."""


PLACEMENTS: dict[str, dict[str, Placement]] = {
    "GRU": {
        "paper": Placement(input=((0, 2), (2, 3)), state=((0, 2), (2, 3))),
        "input": Placement(input=((0, 2), (2, 3))),
        "haste": Placement(input=((0, 3),), state=((0, 3),), bias_inside=False),
        "dreamer": Placement(state=((0, 3),), joint=True, update_bias=1.0),
    },
    "LSTM": {
        "paper": Placement(input=((0, 4),), state=((0, 4),), cell=True),
        "input": Placement(input=((0, 4),)),
        "haste": Placement(input=((0, 4),), state=((0, 4),), cell=True, bias_inside=False),
    },
}


@dataclass(frozen=True)
class RecurrentSpec:
    """One layer in one direction, checked."""

    cell: str
    hidden: int
    norm: str | None
    p: float
    eps: float
    placement: str

    @property
    def gates(self) -> int:
        return GATES[self.cell]

    @property
    def where(self) -> Placement:
        return PLACEMENTS[self.cell][self.placement] if self.norm else Placement()

    @cached_property
    def native(self) -> tuple[Any, ...]:
        """The first arguments of the native kernels."""
        where = self.where
        return (
            self.gates,
            self.hidden,
            self.norm == "layer",
            self.eps,
            [(*segment, self.count(segment)) for segment in where.input],
            [(*segment, self.count(segment)) for segment in where.state],
            self.count((0, 1)) if where.cell else 0,
            where.update_bias,
        )

    def count(self, segment: tuple[int, int]) -> int:
        """k = ⌈n·p⌉ of the n elements of a segment, the first ones in the order of the gates."""
        return partial_count((segment[1] - segment[0]) * self.hidden, self.p)


def check_recurrent(cell: str, hidden: int, norm: str | None, p: float, eps: float, placement: str) -> RecurrentSpec:
    """The specification, or an error that says what must hold."""
    if not isinstance(norm, (str, type(None))) or norm not in NORMS:
        raise ValueError(f"norm must be 'rms', 'layer' or None, got {norm!r}")
    if not isinstance(placement, str) or placement not in PLACEMENTS[cell]:
        known = ", ".join(map(repr, PLACEMENTS[cell]))
        raise ValueError(f"placement of a normalised {cell} must be one of {known}, got {placement!r}")
    checked_eps = check_eps(eps)
    if checked_eps is None:
        raise ValueError("eps must be a number, got None: the state is zero at the start, and so is its first norm")
    where = PLACEMENTS[cell][placement]
    if norm and checked_eps == 0 and (where.state or where.cell):
        raise ValueError("eps must be above 0, got 0: the state is zero at the start, and 0/0 its first norm")
    p = check_p(p)
    if norm != "rms" and p != 1.0:
        raise ValueError(f"p < 1 is for norm='rms' (pRMSNorm), got p={p} with norm={norm!r}")
    return RecurrentSpec(cell, hidden, norm, p, checked_eps, placement)


class Parameters(NamedTuple):
    """A layer's parameters in one direction; those that it does not have are None."""

    weight_ih: Tensor  # (G·H, I): G gates, H units, I features
    weight_hh: Tensor  # (G·H, H)
    bias_ih: Tensor | None = None  # (G·H)
    bias_hh: Tensor | None = None
    gain_ih: Tensor | None = None  # (G·H)
    gain_hh: Tensor | None = None
    gain_cell: Tensor | None = None  # (H)


def parameter_shapes(gates: int, hidden: int, features: int) -> dict[str, tuple[int, ...]]:
    """The shape of each of :class:`Parameters`."""
    width = gates * hidden
    shapes = ((width, features), (width, hidden), (width,), (width,), (width,), (width,), (hidden,))
    return dict(zip(Parameters._fields, shapes, strict=True))


def check_layer(
    gates: int,
    hidden: int,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    parameters: Sequence[Tensor | None],
    batch_sizes: Sequence[int] | None,
) -> None:
    """The shapes of everything that a layer is computed from; the kernels of a step do not check them again.

    parameters: in the order of :class:`Parameters`. A module's parameters may have been replaced since it was made.
    """
    if x.dim() != 2 or h0.dim() != 2:
        raise MismatchError(f"x must be (rows, features) and h0 (batch, hidden), got {x.dim()}D and {h0.dim()}D")
    batch = h0.shape[0]
    for t, (name, shape) in zip(parameters, parameter_shapes(gates, hidden, x.shape[1]).items(), strict=True):
        if t is not None and t.shape != shape:
            raise MismatchError(f"{name} must have shape {tuple(shape)} in this layer, got {tuple(t.shape)}")
        if t is not None and not t.is_floating_point():
            raise TypeError(f"{name} must have a floating dtype, got {t.dtype}")
    for name, state in (("h0", h0), ("c0", c0)):
        if state is not None and state.shape != (batch, hidden):
            raise MismatchError(f"{name} must have shape {(batch, hidden)}, got {tuple(state.shape)}")
    if batch_sizes is None:
        if x.shape[0] % batch if batch else x.shape[0]:
            raise MismatchError(f"x must have {batch} rows for each step, as h0 has, got {x.shape[0]} rows")
    elif sum(batch_sizes) != x.shape[0] or any(
        later > earlier or later < 1 for earlier, later in pairwise((batch, *batch_sizes))
    ):
        raise MismatchError(
            f"batch_sizes must be positive, not rise, begin with at most the {batch} rows of h0 and add up to the "
            f"{x.shape[0]} rows of x, got {list(batch_sizes)}"
        )
