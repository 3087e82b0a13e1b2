"""GRUCell and LSTMCell: one step of a layer."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rmsnorm.torch.rnn import checks
from rmsnorm.torch.rnn.base import Device, Recurrent
from rmsnorm.torch.rnn.spec import Parameters


class _Cell(Recurrent):
    weight_ih: Tensor
    least_size = 0

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        norm: str | None = "rms",
        p: float = 1.0,
        eps: float = 1e-5,
        placement: str = "paper",
    ) -> None:
        super().__init__()
        self._configure(input_size, hidden_size, bias, norm, p, eps, placement)
        self._register("", self.input_size, device, dtype)
        for role in Parameters._fields:
            if not hasattr(self, role):
                self.register_parameter(role, None)
        self.reset_parameters()

    def _step(self, input: Tensor, hx: Sequence[Tensor | None]) -> list[Tensor]:
        checks.check_cell_input(self.cell, input, self.input_size)
        unbatched = input.dim() == 1
        x = input.unsqueeze(0) if unbatched else input
        states = []
        for index, given in enumerate(hx):
            if given is None:
                states.append(x.new_zeros((x.shape[0], self.hidden_size)))
            else:
                checks.check_cell_state(self.cell, index, given, self.hidden_size, input)
                states.append(given.unsqueeze(0) if unbatched else given)
        checks.check_placed(input, self.weight_ih)
        _, last = self._run("", x, states)
        return [s.squeeze(0) for s in last] if unbatched else last


class GRUCell(_Cell):
    r"""One step of :class:`GRU`. Replaces :class:`torch.nn.GRUCell`.

    .. math:: h' = \mathrm{GRU}(x, h)

    Args:
        input_size, hidden_size, bias, device, dtype: as in torch.
        norm, p, eps, placement: as in :class:`GRU`, and so are equation and dtypes.

    Shape:
        - call: ``h_1 = cell(input, hx=None)``
        - input: (B, I) or (I)
        - hx, h_1: (B, H) or (H)

    Raises:
        TypeError, ValueError, NotImplementedError: as :class:`GRU`.

    Source: as :class:`GRU`.

    Example:
        >>> GRUCell(16, 32)(torch.randn(3, 16)).shape
        torch.Size([3, 32])
    """

    cell = "GRU"

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        return self._step(input, (hx,))[0]


class LSTMCell(_Cell):
    r"""One step of :class:`LSTM`. Replaces :class:`torch.nn.LSTMCell`.

    .. math:: (h', c') = \mathrm{LSTM}(x, (h, c))

    Args:
        input_size, hidden_size, bias, device, dtype: as in torch.
        norm, p, eps, placement: as in :class:`LSTM`, and so are equation and dtypes.

    Shape:
        - call: ``h_1, c_1 = cell(input, hx=None)``, where hx is (h_0, c_0)
        - input: (B, I) or (I)
        - h_0, c_0, h_1, c_1: (B, H) or (H)

    Raises:
        TypeError, ValueError, NotImplementedError: as :class:`GRU`.

    Source: as :class:`LSTM`.

    Example:
        >>> h, c = LSTMCell(16, 32)(torch.randn(3, 16))
        >>> h.shape, c.shape
        (torch.Size([3, 32]), torch.Size([3, 32]))
    """

    cell = "LSTM"

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        h, c = self._step(input, checks.checked_pair(hx))
        return h, c
