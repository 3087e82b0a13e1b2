"""Where the norms of a recurrent cell stand, and every check of what a layer is asked to be.

A cell sees two sides, a = W_ih x + b_ih and c = W_hh h, with the gates' stretches one behind the other (GRU: r, z, n;
LSTM: i, f, g, o, as in torch). A *segment* is a run of gates that share one statistic.
"""

from dataclasses import dataclass

from rmsnorm.spec import check_eps, check_p, partial_count

NORMS = ("rms", "layer", None)
GATES = {"GRU": 3, "LSTM": 4}

Segments = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Placement:
    """What is normalised: segments of the x side, of the h side, of their sum; the LSTM's cell state."""

    input: Segments = ()
    state: Segments = ()
    joint: bool = False
    """The h side's segments are taken of a + c; the x side has none of its own."""
    cell: bool = False
    bias_inside: bool = True
    """Whether b_ih is added before the norm of the x side (b_hh always comes after that of the h side)."""
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

    def count(self, segment: tuple[int, int]) -> int:
        """k = ⌈n·p⌉ of the n elements of a segment, the first ones in the order of the gates."""
        return partial_count((segment[1] - segment[0]) * self.hidden, self.p)


def check_recurrent(cell: str, hidden: int, norm: str | None, p: float, eps: float, placement: str) -> RecurrentSpec:
    """The specification, or an error that says what must hold."""
    if not isinstance(norm, (str, type(None))) or norm not in NORMS:
        raise ValueError(f"norm must be 'rms', 'layer' or None, got {norm!r}")
    if placement not in PLACEMENTS[cell]:
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
