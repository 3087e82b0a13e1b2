"""Ctrl-C and SIGTERM (Slurm, ``docker stop``): both end a command with KeyboardInterrupt, but never inside a step or a
save."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_held = 0
_pending = False


@contextmanager
def watched() -> Iterator[None]:
    """Handle both signals, unless they are ignored (as SIGINT is for a script's background jobs)."""
    global _pending
    _pending = False
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    taken = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    if threading.current_thread() is not threading.main_thread():
        taken = []  # Python lets no other thread do it
    for number in taken:
        signal.signal(number, _received)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])


@contextmanager
def held() -> Iterator[None]:
    """Hold signals until the block is finished; then they take effect."""
    global _held, _pending
    _held += 1
    try:
        yield
    finally:
        _held -= 1
    if _pending and not _held:
        _pending = False
        raise KeyboardInterrupt


def pending() -> bool:
    """Whether a signal is being held."""
    return _pending


def _received(*_: object) -> None:
    global _pending
    if _held:
        _pending = True
    else:
        raise KeyboardInterrupt
