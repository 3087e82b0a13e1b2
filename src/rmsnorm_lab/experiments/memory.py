"""The most memory that this process held since it was asked to forget, and giving back what is free."""

import contextlib
import ctypes
import gc
from pathlib import Path

import torch

_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """Starts to watch when made; on a GPU what torch allocated there, else the process's resident memory (Linux)."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            try:
                _FORGET.write_text("5")  # the kernel's command for: forget the peak
                self.known = True
            except OSError:
                self.known = False

    def bytes(self) -> int | None:
        """None where the system does not tell."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if not self.known:
            return None
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])


def give_back() -> None:
    """Free memory goes back to the system.

    The many small tensors of a recurrence's steps leave it in pieces, which glibc keeps: 0.6 GiB for each normaliser of
    RNNSearch that was profiled.
    """
    gc.collect()
    with contextlib.suppress(OSError, TypeError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
