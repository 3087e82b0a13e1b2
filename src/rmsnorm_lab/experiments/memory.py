"""Return free memory to the system."""

import contextlib
import ctypes
import gc


def give_back() -> None:
    """Free memory goes back to the system.

    The many small tensors of a recurrence's steps leave it in pieces, which glibc keeps: 0.6 GiB for each normaliser of
    RNNSearch that was profiled.
    """
    gc.collect()
    with contextlib.suppress(OSError, TypeError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
