"""Free memory, how much there is, and the collector of cycles."""

import contextlib
import ctypes
import gc
from collections.abc import Iterator
from pathlib import Path

import torch


def give_back() -> None:
    """Free memory goes back to the system.

    The many small tensors of a recurrence's steps leave it in pieces, which glibc keeps: 0.6 GiB for each normaliser of
    RNNSearch that was profiled.
    """
    gc.collect()
    with contextlib.suppress(OSError, TypeError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def new_objects_only() -> Iterator[None]:
    """Within it :func:`give_back` looks at the objects made since, not at those of all imported modules, which take
    0.2 s each time. Where the process has frozen its objects already, they stay frozen."""
    if gc.get_freeze_count():
        yield
        return
    gc.collect()  # what is garbage now must not be kept
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def available(device: str) -> int | None:
    """Bytes that this process can still take on the device; None if the system does not say.

    Of the machine and of a container (version 2 of Linux's control groups), the smaller one.
    """
    if torch.device(device).type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    found = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        found.append(limit - used)
    return min(found, default=None)
