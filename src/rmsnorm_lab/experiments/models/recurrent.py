"""GRU and LSTM over any normaliser, where the paper puts the norms: this project's layers or plain loops of operators.

Legend of the shape suffixes: T steps, B sequences, I input width, H hidden width, G gates · H.

With N(·) the norm and its gain, x-side and state-side normalised apart, the bias of the x-side before the norm and that
of the state-side after it (with ``norm="none"`` this is torch's own GRU and LSTM):

    GRU    a = N(W_ih x + b_ih), c = N(W_hh h) + b_hh       one statistic for the gates r and z together, one for n
           r = σ(a_r + c_r), z = σ(a_z + c_z), n = tanh(a_n + r ⊙ c_n), h' = (1 − z) ⊙ n + z ⊙ h
    LSTM   a = N(W_ih x + b_ih), c = N(W_hh h) + b_hh       one statistic for the four gates i, f, g, o
           m' = σ(a_f + c_f) ⊙ m + σ(a_i + c_i) ⊙ tanh(a_g + c_g), h' = σ(a_o + c_o) ⊙ tanh(N(m'))

These are the biases that torch's layers have. With ``biases="paper"`` (recipes/common.py) they are those of the paper's
code: no b_hh, but LSTM's sum takes b_ih once more, and "+ b" is of LayerNorm (of BatchNorm in the cell alone):

    GRU    a = N(W_ih x + b_ih) + b, c = N(W_hh h) + b
    LSTM   a = N(W_ih x + b_ih) + b + b_ih, c = N(W_hh h) + b, and N(m') + b in h'

Parameters have the names of torch's modules, and gain_ih, gain_hh, gain_cell, and shift_ih, … for "+ b"; a norm with
parameters of its own has them in ``norms`` instead; "weight" is torch's parametrization of the two weights. Functions
that draw weights call :func:`initialise`, which handles both cases.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rmsnorm.torch import GRU, LSTM
from rmsnorm_lab.experiments.norms.base import Normaliser, biased
from rmsnorm_lab.recurrent_steps import gru_step, lstm_step

Draw = Callable[[Tensor], object]
"""Fills a tensor in place, as the functions of torch.nn.init do."""
Running = list[Tensor | None]
"""For each step the indices of the sequences that still run; None: all of them."""


def active(lengths_B: Tensor, steps: int) -> Tensor:
    """(T, B): whether sequence b still runs at step t."""
    return torch.arange(steps, device=lengths_B.device)[:, None] < lengths_B


def still_running(lengths_B: Tensor, steps: int) -> Running:
    every = active(lengths_B, steps)
    return [None if row.all() else row.nonzero()[:, 0] for row in every]


class _Recurrent(nn.Module):
    """The parameters of one cell: (G, I), (G, H), (G), (G), gains of 1 and shifts of 0."""

    gates: int
    suffix = ""

    def __init__(self, input_size: int, hidden_size: int, norm: Normaliser, biases: str = "alike") -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.norm = input_size, hidden_size, norm
        self.papers = biases == "paper"
        width = self.gates * hidden_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (width, input_size), "weight_hh": (width, hidden_size)}
        shapes |= {"bias_ih": (width,)} if self.papers else {"bias_ih": (width,), "bias_hh": (width,)}
        for name, shape in shapes.items():
            self.register_parameter(name + self.suffix, nn.Parameter(torch.empty(shape)))
        for name, size in self.gain_sizes().items():
            self.register_parameter(name + self.suffix, nn.Parameter(torch.ones(size)))
            place = name.removeprefix("gain_")
            shift = nn.Parameter(torch.zeros(size)) if self.papers and place in norm.biased else None
            self.register_parameter(f"shift_{place}{self.suffix}", shift)
        bound = 1 / math.sqrt(hidden_size)  # torch's own start
        for name in shapes:
            nn.init.uniform_(self.parameter(name), -bound, bound)
        for name in ("weight_ih", "weight_hh"):
            norm.parametrise(self, name + self.suffix)
        self.normalise = norm.vector() if self.gain_sizes() and not norm.over_examples else None
        if norm.own_parameters:
            self.norms = nn.ModuleDict({name: norm.layer(size) for name, size in self.vector_sizes().items()})

    def gain_sizes(self) -> dict[str, int]:
        width = self.gates * self.hidden_size
        gained = self.norm.of_activations and not self.norm.own_parameters
        return {"gain_ih": width, "gain_hh": width} if gained else {}

    def vector_sizes(self) -> dict[str, int]:
        """The vectors that are normalised, each with one statistic."""
        raise NotImplementedError

    def parameter(self, name: str) -> Tensor:
        """The parameter, its suffix left out; a weight under parametrization is computed again by each call."""
        return getattr(self, name + self.suffix)

    def shift(self, place: str) -> Tensor | None:
        """The bias after the norm's gain, if the norm has one."""
        shift: Tensor | None = getattr(self, f"shift_{place}{self.suffix}")
        return shift

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, norm={type(self.norm).__name__}"


class _GRU(_Recurrent):
    gates = 3

    def __init__(self, input_size: int, hidden_size: int, norm: Normaliser, biases: str = "alike") -> None:
        if norm.over_examples:
            raise ValueError(f"the norm of a {type(self).__name__} must be of one vector; got {type(norm).__name__}")
        super().__init__(input_size, hidden_size, norm, biases)

    def input_side(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """N(W_ih x + b_ih) of (..., I), all steps at once: the gates' part (..., 2H), the proposal's (..., H).

        The gates' part of b_hh, which is added to the sum of both sides, is added here: once instead of at every step.
        """
        a = nn.functional.linear(x, self.parameter("weight_ih"), self.parameter("bias_ih"))
        gates, proposal = self._normalise(a, "ih")
        return (gates if self.papers else gates + self.parameter("bias_hh")[: 2 * self.hidden_size]), proposal

    def hidden_side(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """N(W_hh h) of (..., H), its bias not yet added: the gates' part (..., 2H), the proposal's (..., H)."""
        return self._normalise(nn.functional.linear(h, self.parameter("weight_hh")), "hh")

    def vector_sizes(self) -> dict[str, int]:
        sizes = {"gates": 2 * self.hidden_size, "proposal": self.hidden_size}
        return {f"{side}_{part}": size for side in ("ih", "hh") for part, size in sizes.items()}

    def _normalise(self, a: Tensor, side: str) -> tuple[Tensor, Tensor]:
        cut = 2 * self.hidden_size
        gates, proposal = a[..., :cut], a[..., cut:]
        if self.norm.own_parameters:
            return self.norms[f"{side}_gates"](gates), self.norms[f"{side}_proposal"](proposal)
        if self.normalise is None:
            return gates, proposal
        g, b = self.parameter(f"gain_{side}"), self.shift(side)
        of_gates, of_proposal = (None, None) if b is None else (b[:cut], b[cut:])
        y = biased(self.normalise, gates, g[:cut], of_gates)
        return y, biased(self.normalise, proposal, g[cut:], of_proposal)

    def step(self, a: tuple[Tensor, Tensor], h_BH: Tensor) -> Tensor:
        c = self.hidden_side(h_BH)
        if not self.papers:
            c = c[0], c[1] + self.parameter("bias_hh")[2 * self.hidden_size :]
        return gru_step(a, c, h_BH)


class LoopGRUCell(_GRU):
    """One step: (x_BI, h_BH) -> h_BH. Its ``input_side`` may be taken for all steps beforehand, then ``step``."""

    def forward(self, x_BI: Tensor, h_BH: Tensor) -> Tensor:
        return self.step(self.input_side(x_BI), h_BH)


class LoopGRU(_GRU):
    """One layer, one direction: (x_TBI, h_1BH) -> (outputs_TBH, h_1BH), as torch.nn.GRU."""

    suffix = "_l0"

    def forward(self, x_TBI: Tensor, h_1BH: Tensor) -> tuple[Tensor, Tensor]:
        h_BH, outputs = h_1BH[0], []
        with parametrize.cached():  # WeightNorm's weight is the same at every step
            for a in zip(*self.input_side(x_TBI), strict=True):
                h_BH = self.step(a, h_BH)
                outputs.append(h_BH)
        return torch.stack(outputs), h_BH[None]


class _LSTM(_Recurrent):
    gates = 4

    def __init__(self, input_size: int, hidden_size: int, norm: Normaliser, biases: str = "alike") -> None:
        super().__init__(input_size, hidden_size, norm, biases)
        if norm.over_examples:
            self.batch_norms = nn.ModuleDict({name: norm.step_norm(size) for name, size in self.gain_sizes().items()})
            for name in self.gain_sizes():  # Cooijmans et al. 2017, §4: at 1 the tanh's gradients vanish
                nn.init.constant_(self.parameter(name), 0.1)

    def gain_sizes(self) -> dict[str, int]:
        gains = super().gain_sizes()
        return gains | {"gain_cell": self.hidden_size} if gains else gains

    def vector_sizes(self) -> dict[str, int]:
        width = self.gates * self.hidden_size
        return {"ih": width, "hh": width, "cell": self.hidden_size}

    def _normalise(self, x: Tensor, place: str, rows: Tensor | None = None, step: int = 0) -> Tensor:
        if self.norm.own_parameters:
            return self.norms[place](x)
        gain = f"gain_{place}"
        if self.norm.over_examples:
            return self.batch_norms[gain](x, self.parameter(gain), rows, step, self.shift(place))
        if self.normalise is None:
            return x
        return biased(self.normalise, x, self.parameter(gain), self.shift(place))

    def input_side(self, x: Tensor) -> Tensor:
        """N(W_ih x + b_ih), (..., I) -> (..., G), all steps at once; batch norm is left to each step."""
        a = nn.functional.linear(x, self.parameter("weight_ih"), self.parameter("bias_ih"))
        return a if self.norm.over_examples else self._normalise(a, "ih")

    def step(
        self, a_BG: Tensor, state: tuple[Tensor, Tensor], weight_hh: Tensor, rows: Tensor | None = None, step: int = 0
    ) -> tuple[Tensor, Tensor]:
        h_BH, m_BH = state
        a_BG = self._normalise(a_BG, "ih", rows, step) if self.norm.over_examples else a_BG
        c_BG = self._normalise(nn.functional.linear(h_BH, weight_hh), "hh", rows, step)
        sides_BG = a_BG + c_BG + self.parameter("bias_ih" if self.papers else "bias_hh")
        return lstm_step(sides_BG, m_BH, lambda m: self._normalise(m, "cell", rows, step))


class LoopLSTM(_LSTM):
    """One layer, one direction: (x_TBI, (h_1BH, m_1BH)) -> (outputs_TBH, (h_1BH, m_1BH)), as torch.nn.LSTM.

    From ``lengths_B`` batch norm knows which sequences still run at each step; other norms ignore it.
    """

    suffix = "_l0"

    def forward(
        self, x_TBI: Tensor, state: tuple[Tensor, Tensor], lengths_B: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        rows: Running = [None] * len(x_TBI)
        if self.norm.over_examples and lengths_B is not None:
            rows = still_running(lengths_B, len(x_TBI))
        weight_hh, current, outputs = self.parameter("weight_hh"), (state[0][0], state[1][0]), []
        for t, a_BG in enumerate(self.input_side(x_TBI)):
            current = self.step(a_BG, current, weight_hh, rows[t], t)
            outputs.append(current[0])
        return torch.stack(outputs), (current[0][None], current[1][None])


def gru_layer(input_size: int, hidden_size: int, norm: Normaliser, biases: str = "alike") -> nn.Module:
    """One layer, one direction: :class:`rmsnorm.torch.GRU` where it does what ``norm`` asks for, or the loop.

    Whichever it is, parameters, their names and what is drawn for them are the same. With the paper's biases every
    norm takes the loop: the layers have torch's.
    """
    arguments = norm.recurrence() if biases == "alike" else None
    if arguments is None:
        return LoopGRU(input_size, hidden_size, norm, biases)
    return GRU(input_size, hidden_size, **arguments)


def lstm_layer(input_size: int, hidden_size: int, norm: Normaliser, biases: str = "alike") -> nn.Module:
    """The same for :class:`rmsnorm.torch.LSTM`."""
    arguments = norm.recurrence() if biases == "alike" else None
    if arguments is None:
        return LoopLSTM(input_size, hidden_size, norm, biases)
    return LSTM(input_size, hidden_size, **arguments)


def zero_biases(layer: Any) -> None:
    """Set the biases of a cell or layer to 0."""
    for name, parameter in layer.named_parameters():
        if name.startswith("bias"):
            nn.init.zeros_(parameter)


def initialise(module: Any, name: str, draw: Draw) -> None:
    """Draw a weight of a cell or layer (``"weight_ih"``, …) gate by gate: each (H, I) or (H, H) block by itself."""
    suffix = "" if hasattr(module, name) else "_l0"
    drawn = torch.empty_like(getattr(module, name + suffix))
    for block in drawn.split(module.hidden_size):
        draw(block)
    with torch.no_grad():
        if parametrize.is_parametrized(module, name + suffix):
            setattr(module, name + suffix, drawn)  # the gain becomes the norm of what was drawn
        else:
            getattr(module, name + suffix).copy_(drawn)


class Ragged(nn.Module):
    """One recurrent layer over sequences of unequal length, in one direction or in both; padding changes nothing.

    (x_TBI, lengths_B) -> (outputs_TB(D·H), zero beyond a sequence's end; last_B(D·H), the state after the last step of
    each direction). The backward direction reads each sequence from its own end.

    Args:
        make: the layer of one direction, called once for each; all calls draw weights in the same order.
        bidirectional: D is 2 instead of 1.
        learned_start: h₀ is a parameter, 0 at the start, instead of 0.
    """

    def __init__(self, make: Callable[[], nn.Module], bidirectional: bool = False, learned_start: bool = False) -> None:
        super().__init__()
        layers: list[Any] = [make() for _ in range(1 + bidirectional)]
        self.directions, self.hidden_size = nn.ModuleList(layers), layers[0].hidden_size
        start = torch.zeros(len(self.directions), self.hidden_size)
        self.start = nn.Parameter(start) if learned_start else None

    def forward(self, x_TBI: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        steps = torch.arange(len(x_TBI), device=x_TBI.device)[:, None]
        valid_TB1 = active(lengths_B, len(x_TBI))[..., None]
        mirrored_TB1 = torch.where(valid_TB1[..., 0], lengths_B - 1 - steps, steps)[..., None]
        last_1B1 = (lengths_B - 1)[None, :, None]
        outputs, finals = [], []
        for d, layer in enumerate(self.directions):
            x = x_TBI if d == 0 else x_TBI.gather(0, mirrored_TB1.expand_as(x_TBI))
            y_TBH = self._run(layer, d, x, lengths_B)
            finals.append(y_TBH.gather(0, last_1B1.expand(1, -1, y_TBH.shape[-1]))[0])
            y_TBH = y_TBH if d == 0 else y_TBH.gather(0, mirrored_TB1.expand_as(y_TBH))
            outputs.append(y_TBH.masked_fill(~valid_TB1, 0.0))
        return torch.cat(outputs, dim=-1), torch.cat(finals, dim=-1)

    def _run(self, layer: nn.Module, d: int, x_TBI: Tensor, lengths_B: Tensor) -> Tensor:
        shape = (1, x_TBI.shape[1], self.hidden_size)
        h_1BH = x_TBI.new_zeros(shape) if self.start is None else self.start[d].expand(shape)
        if isinstance(layer, _GRU | GRU):
            return layer(x_TBI, h_1BH)[0]
        state = (h_1BH, torch.zeros_like(h_1BH))
        return layer(x_TBI, state, lengths_B)[0] if isinstance(layer, LoopLSTM) else layer(x_TBI, state)[0]
