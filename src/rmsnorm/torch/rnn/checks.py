"""The checks of the recurrent modules: what must hold, what was received, what to do."""

from collections.abc import Sequence

import torch
from torch import Tensor


def autocast_enabled(x: Tensor) -> bool:
    """Whether autocast converts ``x``: like torch's operators, neither float64 nor integers."""
    device = x.device.type
    if not x.is_floating_point() or x.dtype == torch.float64:
        return False
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive int, got {value!r}")
    return value


def probability(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, got {value!r}")
    return float(value)


def features(x: Tensor, size: int, weight: Tensor) -> None:
    """The last dimension, dtype and device of an input."""
    if not isinstance(x, Tensor):
        raise TypeError(f"input must be a Tensor or a PackedSequence, got {type(x).__name__}")
    if x.dim() == 0 or x.shape[-1] != size:
        raise ValueError(f"input must have {size} features (input_size) in its last dimension, got {tuple(x.shape)}")
    if x.device != weight.device:
        raise ValueError(f"input must be on the parameters' device {weight.device}, got {x.device}; move one of them")
    if x.dtype != weight.dtype and not autocast_enabled(x):
        raise ValueError(f"input must have the parameters' dtype {weight.dtype}, got {x.dtype}; convert one of them")


def padded(x: Tensor, size: int, batch_first: bool, weight: Tensor) -> None:
    features(x, size, weight)
    if x.dim() not in (2, 3):
        shape = "(batch, steps, features)" if batch_first else "(steps, batch, features)"
        raise ValueError(f"input must be {shape}, or (steps, features) without a batch, got {tuple(x.shape)}")


def cell_input(x: Tensor, size: int, weight: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"input of a cell must be a Tensor, got {type(x).__name__}")
    features(x, size, weight)
    if x.dim() not in (1, 2):
        raise ValueError(f"input of a cell must be (batch, features) or (features,), got {tuple(x.shape)}")


def state(given: Tensor, expected: tuple[int, ...], x: Tensor) -> None:
    """An initial state's shape, dtype and device."""
    if not isinstance(given, Tensor):
        raise TypeError(f"an initial state must be a Tensor, got {type(given).__name__}")
    if tuple(given.shape) != expected:
        raise ValueError(f"an initial state must have shape {expected} for this input, got {tuple(given.shape)}")
    if given.device != x.device:
        raise ValueError(f"an initial state must be on the input's device {x.device}, got {given.device}")
    if given.dtype != x.dtype and not autocast_enabled(x):
        raise ValueError(f"an initial state must have the input's dtype {x.dtype}, got {given.dtype}")


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
