"""The checks of the recurrent modules: what must hold, what was received, what to do.

Where torch's modules refuse the same, messages begin with torch's words, and types are torch's or derived from them.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from rmsnorm.spec import MismatchError
from rmsnorm.torch.checks import check_dense, check_memory

_PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "gain_ih", "gain_hh", "gain_cell")


def autocast_enabled(x: Tensor) -> bool:
    """Whether autocast converts ``x``: like torch's operators, neither float64 nor integers."""
    device = x.device.type
    if not x.is_floating_point() or x.dtype == torch.float64:
        return False
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def size(name: str, value: int, least: int = 1) -> int:
    """An int of at least ``least``, 1 or 0."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} should be of type int, got: {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be {'greater than zero' if least else 'zero or greater'}, got {value}")
    return value


def flag(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")
    return value


def probability(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(
            f"{name} should be a number in range [0, 1] representing the probability of an element being zeroed, "
            f"got {value!r}"
        )
    return float(value)


def projection(cell: str, value: int) -> None:
    if size("proj_size", value, 0):
        if cell != "LSTM":
            raise ValueError(f"proj_size argument is only supported for LSTM, not {cell}, got {value}; leave it at 0")
        raise NotImplementedError(f"proj_size is not supported, got {value}; leave it at 0")


def place(x: Tensor, weight: Tensor) -> None:
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


def features(x: Tensor, size: int, weight: Tensor) -> None:
    """The rows of a layer's input."""
    if x.dim() < 2 or x.shape[-1] != size:
        raise MismatchError(
            f"input.size(-1) must be equal to input_size. Expected {size}, got {x.shape[-1] if x.dim() else 'none'} in "
            f"an input of shape {tuple(x.shape)}"
        )
    place(x, weight)


def padded(cell: str, x: Tensor, size: int, batch_first: bool, weight: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"input must be a Tensor or a PackedSequence, got {type(x).__name__}")
    if x.dim() not in (2, 3):
        shape = "(batch, steps, features)" if batch_first else "(steps, batch, features)"
        raise ValueError(
            f"{cell}: Expected input to be 2D or 3D, got {x.dim()}D instead; it must be {shape}, or (steps, features) "
            "without a batch"
        )
    features(x, size, weight)


def cell_input(cell: str, x: Tensor, size: int) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"input of a cell must be a Tensor, got {type(x).__name__}")
    if x.dim() not in (1, 2):
        raise ValueError(
            f"{cell}Cell: Expected input to be 1D or 2D, got {x.dim()}D instead; it must be (batch, features) or "
            "(features,)"
        )
    if x.shape[-1] != size:
        raise MismatchError(f"input has inconsistent input_size: got {x.shape[-1]} expected {size}")


def _state(given: Tensor, x: Tensor) -> None:
    """The layout of an initial state, and its dtype and device, which are the input's."""
    check_dense("an initial state", given)
    if given.device != x.device:
        raise MismatchError(f"an initial state must be on the input's device {x.device}, got {given.device}")
    if given.dtype != x.dtype and not autocast_enabled(x):
        raise MismatchError(f"an initial state must have the input's dtype {x.dtype}, got {given.dtype}")
    check_memory("an initial state", given)


def _is_tensor(given: Tensor) -> None:
    if not isinstance(given, Tensor):
        raise TypeError(f"an initial state must be a Tensor, got {type(given).__name__}")


def state(name: str, given: Tensor, expected: tuple[int, ...], x: Tensor) -> None:
    """A layer's initial state, which a message calls ``name``."""
    _is_tensor(given)
    if tuple(given.shape) != expected:
        raise MismatchError(f"Expected {name} size {expected}, got {list(given.shape)}")
    _state(given, x)


def cell_state(cell: str, index: int, given: Tensor, hidden: int, x: Tensor) -> None:
    """A cell's initial state, the one number ``index``: (batch, hidden), or (hidden,) without a batch."""
    _is_tensor(given)
    name = "hidden" if cell == "GRU" else f"hx[{index}]"
    if given.dim() not in (1, 2):
        raise ValueError(f"{cell}Cell: Expected {name} to be 1D or 2D, got {given.dim()}D instead")
    if given.dim() != x.dim():
        raise MismatchError(f"{cell}Cell: Expected {name} to be {x.dim()}D as the input is, got {given.dim()}D instead")
    if given.shape[-1] != hidden:
        raise MismatchError(f"hidden{index} has inconsistent hidden_size: got {given.shape[-1]}, expected {hidden}")
    if given.shape[:-1] != x.shape[:-1]:
        raise MismatchError(f"Input batch size {x.shape[0]} doesn't match hidden{index} batch size {given.shape[0]}")
    _state(given, x)


def layer(
    gates: int,
    hidden: int,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    parameters: Sequence[Tensor | None],
    batch_sizes: Sequence[int] | None,
) -> None:
    """The shapes of all that one layer is computed from: the kernels of a step are bound to them without asking again.

    parameters: weight_ih, weight_hh, bias_ih, bias_hh, gain_ih, gain_hh, gain_cell; a module's may have been replaced.
    """
    if x.dim() != 2 or h0.dim() != 2:
        raise MismatchError(f"x must be (rows, features) and h0 (batch, hidden), got {x.dim()}D and {h0.dim()}D")
    width, batch = gates * hidden, h0.shape[0]
    vector = (width,)
    expected = ((width, x.shape[1]), (width, hidden), vector, vector, vector, vector, (hidden,))
    for name, t, shape in zip(_PARAMETERS, parameters, expected, strict=True):
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


def pair(hx: tuple[Tensor, Tensor] | None) -> tuple[Tensor | None, Tensor | None]:
    if hx is None:
        return None, None
    if not isinstance(hx, (tuple, list)) or len(hx) != 2:
        raise TypeError(f"the initial state of an LSTM must be a pair (h_0, c_0), got {type(hx).__name__}")
    return hx[0], hx[1]


def lengths(given: Tensor | Sequence[int], x: Tensor, batch_first: bool) -> Tensor:
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
