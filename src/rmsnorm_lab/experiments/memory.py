"""Free memory and the collector of cycles."""

import contextlib
import ctypes
import gc
from collections.abc import Iterator


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
