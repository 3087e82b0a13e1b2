"""GRU and LSTM: every form of input is brought into the one that a layer takes, rows of all steps."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rmsnorm.torch.rnn import checks
from rmsnorm.torch.rnn.base import Device, Recurrent

Lengths = Tensor | Sequence[int] | None
States = Sequence[Tensor | None]


class _Layers(Recurrent):
    weight_ih_l0: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        norm: str | None = "rms",
        p: float = 1.0,
        eps: float = 1e-5,
        placement: str = "paper",
    ) -> None:
        super().__init__()
        checks.check_projection(self.cell, proj_size)
        self._configure(input_size, hidden_size, bias, norm, p, eps, placement)
        self.num_layers = checks.check_size("num_layers", num_layers)
        self.dropout = checks.check_probability("dropout", dropout)
        self.batch_first = checks.check_flag("batch_first", batch_first)
        self.bidirectional = checks.check_flag("bidirectional", bidirectional)
        if dropout and num_layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects "
                f"num_layers greater than 1, but got dropout={dropout} and num_layers={num_layers}",
                stacklevel=2,
            )
        for layer in range(num_layers):
            size = self.input_size if layer == 0 else self.hidden_size * self.num_directions
            for suffix in self._suffixes(layer):
                self._register(suffix, size, device, dtype)
        self.reset_parameters()

    proj_size = 0
    mode = property(lambda self: self.cell)

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters of each layer and direction: torch's, in torch's order, then the gains."""
        suffixes = (suffix for layer in range(self.num_layers) for suffix in self._suffixes(layer))
        return [[t for t in self._parameters_of(suffix) if t is not None] for suffix in suffixes]

    @property
    def _flat_weights(self) -> list[Tensor]:
        return [t for of_layer in self.all_weights for t in of_layer]

    @property
    def num_directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}", f"_l{layer}_reverse"][: self.num_directions]

    def flatten_parameters(self) -> None:
        """Nothing to do; here because models written for torch's modules call it."""

    def _all(self, x: Tensor, states: list[Tensor], batch_sizes: tuple[int, ...] | None) -> tuple[Tensor, list[Tensor]]:
        """All layers over rows of steps; states: h, or h and c, (layers·directions, B, H) each."""
        finals: list[list[Tensor]] = [[] for _ in states]
        for layer in range(self.num_layers):
            outputs = []
            for direction, suffix in enumerate(self._suffixes(layer)):
                start = [s[layer * self.num_directions + direction] for s in states]
                out, last = self._run(suffix, x, start, batch_sizes, bool(direction))
                outputs.append(out)
                for final, state in zip(finals, last, strict=True):
                    final.append(state)
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
            if self.dropout and layer + 1 < self.num_layers:
                x = nn.functional.dropout(x, self.dropout, self.training)
        return x, [f[0].unsqueeze(0) if len(f) == 1 else torch.stack(f) for f in finals]

    def _forward(
        self, input: Tensor | PackedSequence, hx: States, lengths: Lengths
    ) -> tuple[Tensor | PackedSequence, list[Tensor]]:
        """Output and final states; hx: (h0,) or (h0, c0)."""
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise ValueError("lengths are for padded input; a PackedSequence has its own: leave lengths out")
            return self._packed(input, hx)
        checks.check_padded(self.cell, input, self.input_size, self.batch_first, self.weight_ih_l0)
        if lengths is not None:
            return self._ragged(input, hx, lengths)
        unbatched = input.dim() == 2
        x = input.unsqueeze(1) if unbatched else input.transpose(0, 1) if self.batch_first else input
        steps, batch = x.shape[:2]
        states = self._states(hx, x, batch, unbatched)
        out, last = self._all(x.reshape(steps * batch, self.input_size), states, None)
        out = out.view(steps, batch, out.shape[-1])
        if unbatched:
            return out.squeeze(1), [f.squeeze(1) for f in last]
        return out.transpose(0, 1) if self.batch_first else out, last

    def _ragged(self, input: Tensor, hx: States, lengths: Tensor | Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        steps = input.shape[1 if self.batch_first else 0]
        lengths = checks.checked_lengths(lengths, input, self.batch_first)
        packed = nn.utils.rnn.pack_padded_sequence(input, lengths, self.batch_first, enforce_sorted=False)
        out, last = self._packed(packed, hx)
        return nn.utils.rnn.pad_packed_sequence(out, self.batch_first, total_length=steps)[0], last

    def _packed(self, input: PackedSequence, hx: States) -> tuple[PackedSequence, list[Tensor]]:
        checks.check_rows(input.data, self.input_size, self.weight_ih_l0)
        batch_sizes = tuple(input.batch_sizes.tolist())
        batch = batch_sizes[0]
        states = self._states(hx, input.data, batch, False)
        if input.sorted_indices is not None:
            states = [s.index_select(1, input.sorted_indices) for s in states]
        uniform = batch_sizes[-1] == batch
        out, last = self._all(input.data, states, None if uniform else batch_sizes)
        if input.unsorted_indices is not None:
            last = [f.index_select(1, input.unsorted_indices) for f in last]
        return PackedSequence(out, input.batch_sizes, input.sorted_indices, input.unsorted_indices), last

    def _states(self, hx: States, x: Tensor, batch: int, unbatched: bool) -> list[Tensor]:
        """The initial states as (layers·directions, B, H); zeros where none is given."""
        count = self.num_layers * self.num_directions
        expected = (count, self.hidden_size) if unbatched else (count, batch, self.hidden_size)
        if all(given is None for given in hx):  # one tensor for all: nothing writes to it
            return [x.new_zeros((count, batch, self.hidden_size))] * len(hx)
        states = []
        for index, given in enumerate(hx):
            if given is None:
                states.append(x.new_zeros((count, batch, self.hidden_size)))
            else:
                checks.check_state("hidden" if len(hx) == 1 else f"hidden[{index}]", given, expected, x)
                states.append(given.unsqueeze(1) if unbatched else given)
        return states


class GRU(_Layers):
    r"""A GRU with norms inside; one autograd node per layer.

    With a = W_ih x + b_ih and c = W_hh h, x̂ the normalised x times its gain, and ``placement="paper"``:

    .. math::
        r = σ(â_r + ĉ_r + b_{hr}), \quad z = σ(â_z + ĉ_z + b_{hz}), \quad
        n = \tanh(â_n + r ⊙ (ĉ_n + b_{hn})), \quad h' = (1 - z) ⊙ n + z ⊙ h

    The gates r and z of a share one statistic; its candidate n has its own. The same holds for c. Replaces
    :class:`torch.nn.GRU`: the same constructor, call and parameter names. A checkpoint of torch's loads with
    ``strict=False``; the gains stay 1.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype: as in torch.
        proj_size: must be 0.
        norm: ``"rms"``, ``"layer"``, or None for torch's GRU.
        p: with ``norm="rms"``: each statistic is taken of the first ⌈n·p⌉ elements of its own vector. For r and z
            together these are elements of r while p ≤ 1/2.
        eps: inside the root.
        placement: ``"paper"``; ``"input"``: only a is normalised; ``"haste"``: one statistic of all three gates on each
            side, with b_ih after the norm; ``"dreamer"`` (DreamerV3): one norm of a + c over all three gates, with r
            multiplied after the norm and 1 added to z before its σ.

    The parameters are those of torch's GRU and the gains ``gain_ih_l{k}`` (3·H) and ``gain_hh_l{k}`` (3·H), where the
    placement has them. Norms, gates and sums over rows are computed in float32 (float64 for float64); states have the
    input's dtype.

    Shape:
        - call: ``output, h_n = gru(input, hx=None, *, lengths=None)``
        - input: (T, B, I), (B, T, I) with ``batch_first``, (T, I), or a packed sequence; float16, bfloat16, float32 or
          float64
        - lengths: (B,), for sequences padded at their ends; outputs beyond an end are zero
        - output: (T, B, directions·H), or as the input is laid out
        - hx, h_n: (layers·directions, B, H)

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if an argument has a wrong value, or if tensors do not fit the layer; the latter error is a
            ``RuntimeError`` too, as in torch.
        NotImplementedError: for ``proj_size`` > 0 and under ``torch.jit.script``.

    Source: Zhang & Sennrich, "Root Mean Square Layer Normalization" (2019), §5.1; Ba, Kiros & Hinton (2016), suppl.

    Example:
        >>> gru = GRU(16, 32, bidirectional=True)
        >>> output, h_n = gru(torch.randn(5, 3, 16), lengths=[5, 2, 4])
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 64]), torch.Size([2, 3, 32]))
    """

    cell = "GRU"

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Lengths = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        out, (h_n,) = self._forward(input, (hx,), lengths)
        return out, h_n


class LSTM(_Layers):
    r"""An LSTM with norms inside; one autograd node per layer.

    With a = W_ih x + b_ih and d = W_hh h, x̂ the normalised x times its gain, and ``placement="paper"``:

    .. math::
        (i, f, o) = σ(â + \hat{d} + b_{hh}), \quad g = \tanh(â + \hat{d} + b_{hh}), \quad
        c' = f ⊙ c + i ⊙ g, \quad h' = o ⊙ \tanh(\hat{c'})

    The four gates of a share one statistic, those of d another. The cell state is normalised before its tanh but
    carried to the next step as it is. Replaces :class:`torch.nn.LSTM` as :class:`GRU` replaces torch's.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype: as in torch.
        proj_size: must be 0.
        norm, p, eps: as in :class:`GRU`.
        placement: ``"paper"``; ``"input"``: only a is normalised; ``"haste"``: the paper's, with b_ih after the norm.

    The parameters are those of torch's LSTM and the gains ``gain_ih_l{k}``, ``gain_hh_l{k}`` (4·H) and
    ``gain_cell_l{k}`` (H), where the placement has them. The dtypes are those of :class:`GRU`.

    Shape:
        - call: ``output, (h_n, c_n) = lstm(input, hx=None, *, lengths=None)``, where hx is (h_0, c_0)
        - input, lengths, output: as in :class:`GRU`
        - h_0, c_0, h_n, c_n: (layers·directions, B, H)

    Raises:
        TypeError, ValueError, NotImplementedError: as :class:`GRU`.

    Source: Zhang & Sennrich, "Root Mean Square Layer Normalization" (2019), §5.1; Ba, Kiros & Hinton (2016), suppl.

    Example:
        >>> lstm = LSTM(16, 32, norm="layer")
        >>> output, (h_n, c_n) = lstm(torch.randn(5, 3, 16))
        >>> output.shape, c_n.shape
        (torch.Size([5, 3, 32]), torch.Size([1, 3, 32]))
    """

    cell = "LSTM"

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Lengths = None,
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
        out, (h_n, c_n) = self._forward(input, checks.checked_pair(hx), lengths)
        return out, (h_n, c_n)
