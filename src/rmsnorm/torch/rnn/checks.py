"""The checks of the recurrent modules' arguments.

If torch's modules refuse the same argument, the message begins with torch's words, and the error's type is torch's or
derived from it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rmsnorm.spec import MismatchError
from rmsnorm.torch.checks import check_dense, check_memory


def autocast_enabled(x: Tensor) -> bool:
    """Whether autocast converts ``x``: like torch's operators, neither float64 nor integers."""
    device = x.device.type
    if not x.is_floating_point() or x.dtype == torch.float64:
        return False
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def check_size(name: str, value: int, least: int = 1) -> int:
    """An int of at least ``least``, 1 or 0."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} should be of type int, got: {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be {'greater than zero' if least else 'zero or greater'}, got {value}")
    return value


def check_flag(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")
    return value


def check_probability(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(
            f"{name} should be a number in range [0, 1] representing the probability of an element being zeroed, "
            f"got {value!r}"
        )
    return float(value)


def check_projection(cell: str, value: int) -> None:
    if check_size("proj_size", value, 0):
        if cell != "LSTM":
            raise ValueError(f"proj_size argument is only supported for LSTM, not {cell}, got {value}; leave it at 0")
        raise NotImplementedError(f"proj_size is not supported, got {value}; leave it at 0")


def check_placed(x: Tensor, weight: Tensor) -> None:
    """The layout, dtype and device of an input."""
    check_dense("input", x)
    if x.device != weight.device:
        raise MismatchError(
            f"input must be on the parameters' device {weight.device}, got {x.device}; move one of them"
        )
    if x.dtype != weight.dtype and not autocast_enabled(x):
        raise MismatchError(
            f"RNN input dtype ({x.dtype}) does not match weight dtype ({weight.dtype}). "
            f"Convert input: input.to({weight.dtype}), or convert model: model.to({x.dtype})"
        )
    check_memory("input", x)


def check_rows(x: Tensor, size: int, weight: Tensor) -> None:
    """The rows of a layer's input."""
    if x.dim() < 2 or x.shape[-1] != size:
        raise MismatchError(
            f"input.size(-1) must be equal to input_size. Expected {size}, got {x.shape[-1] if x.dim() else 'none'} in "
            f"an input of shape {tuple(x.shape)}"
        )
    check_placed(x, weight)


def check_padded(cell: str, x: Tensor, size: int, batch_first: bool, weight: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"input must be a Tensor or a PackedSequence, got {type(x).__name__}")
    if x.dim() not in (2, 3):
        shape = "(batch, steps, features)" if batch_first else "(steps, batch, features)"
        raise ValueError(
            f"{cell}: Expected input to be 2D or 3D, got {x.dim()}D instead; it must be {shape}, or (steps, features) "
            "without a batch"
        )
    check_rows(x, size, weight)


def check_cell_input(cell: str, x: Tensor, size: int) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"input of a cell must be a Tensor, got {type(x).__name__}")
    if x.dim() not in (1, 2):
        raise ValueError(
            f"{cell}Cell: Expected input to be 1D or 2D, got {x.dim()}D instead; it must be (batch, features) or "
            "(features,)"
        )
    if x.shape[-1] != size:
        raise MismatchError(f"input has inconsistent input_size: got {x.shape[-1]} expected {size}")


def _check_placed_as(given: Tensor, x: Tensor) -> None:
    """The layout of an initial state, and its dtype and device, which are the input's."""
    check_dense("an initial state", given)
    if given.device != x.device:
        raise MismatchError(f"an initial state must be on the input's device {x.device}, got {given.device}")
    if given.dtype != x.dtype and not autocast_enabled(x):
        raise MismatchError(f"an initial state must have the input's dtype {x.dtype}, got {given.dtype}")
    check_memory("an initial state", given)


def _check_tensor(given: Tensor) -> None:
    if not isinstance(given, Tensor):
        raise TypeError(f"an initial state must be a Tensor, got {type(given).__name__}")


def check_state(name: str, given: Tensor, expected: tuple[int, ...], x: Tensor) -> None:
    """A layer's initial state, which a message calls ``name``."""
    _check_tensor(given)
    if tuple(given.shape) != expected:
        raise MismatchError(f"Expected {name} size {expected}, got {list(given.shape)}")
    _check_placed_as(given, x)


def check_cell_state(cell: str, index: int, given: Tensor, hidden: int, x: Tensor) -> None:
    """Initial state number ``index`` of a cell: (batch, hidden), or (hidden,) without a batch."""
    _check_tensor(given)
    name = "hidden" if cell == "GRU" else f"hx[{index}]"
    if given.dim() not in (1, 2):
        raise ValueError(f"{cell}Cell: Expected {name} to be 1D or 2D, got {given.dim()}D instead")
    if given.dim() != x.dim():
        raise MismatchError(f"{cell}Cell: Expected {name} to be {x.dim()}D as the input is, got {given.dim()}D instead")
    if given.shape[-1] != hidden:
        raise MismatchError(f"hidden{index} has inconsistent hidden_size: got {given.shape[-1]}, expected {hidden}")
    if given.shape[:-1] != x.shape[:-1]:
        raise MismatchError(f"Input batch size {x.shape[0]} doesn't match hidden{index} batch size {given.shape[0]}")
    _check_placed_as(given, x)


def checked_pair(hx: tuple[Tensor, Tensor] | None) -> tuple[Tensor | None, Tensor | None]:
    if hx is None:
        return None, None
    if not isinstance(hx, (tuple, list)) or len(hx) != 2:
        raise TypeError(f"the initial state of an LSTM must be a pair (h_0, c_0), got {type(hx).__name__}")
    return hx[0], hx[1]


def checked_lengths(given: Tensor | Sequence[int], x: Tensor, batch_first: bool) -> Tensor:
    """One length from 1 to T for each sequence of a padded batch, as a CPU tensor."""
    if x.dim() != 3:
        raise ValueError(f"lengths need a batch of sequences, got input of shape {tuple(x.shape)}")
    batch, steps = (x.shape[0], x.shape[1]) if batch_first else (x.shape[1], x.shape[0])
    try:
        found = torch.as_tensor(given, device="cpu", dtype=None if len(given) else torch.int64)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"lengths must be integers, one for each of {batch} sequences, got {given!r}") from None
    if found.dim() != 1 or len(found) != batch or found.dtype.is_floating_point or found.dtype == torch.bool:
        raise ValueError(
            f"lengths must be {batch} integers, one for each sequence, got {tuple(found.shape)} of {found.dtype}"
        )
    if len(found) and not (found.min() >= 1 and found.max() <= steps):
        raise ValueError(
            f"lengths must lie from 1 to {steps}, the steps of this input, got {int(found.min())} to {int(found.max())}"
        )
    return found.to(torch.int64)
