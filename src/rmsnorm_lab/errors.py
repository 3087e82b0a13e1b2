"""The one exception of the command line, something the user can mend, and the sentences that say what."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Wrong input to a command. The message says what must hold, what was received and what to do; no traceback."""


def nearest(got: str, known: Iterable[str]) -> str:
    """``" Did you mean 'rms'?"`` where ``got`` is much like something known, else nothing: the end of a message."""
    return meant(closest(got, known))


def meant(name: str | None) -> str:
    """The end of a message that suggests a name, if there is one."""
    return "" if name is None else f" Did you mean {name!r}?"


def closest(got: str, known: Iterable[str]) -> str | None:
    """What is known and most like ``got``; None where nothing is much like it."""
    # A flag's dashes are like those of every other flag, and count for nothing.
    plain = {name.lower().lstrip("-"): name for name in known}
    found = difflib.get_close_matches(got.lower().lstrip("-"), plain, n=1)
    return plain[found[0]] if found else None


_NO_MEMORY = ("can't allocate memory", "out of memory", "Storage size calculation overflowed")
"""In torch's RuntimeErrors: of the CPU's allocator, of devices', of sizes beyond 64 bits."""


def sentence(error: Exception) -> str | None:
    """What a command says of an error that its user can mend; None for a defect of this program."""
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(part in str(error) for part in _NO_MEMORY)
    ):
        reason = " ".join(str(error).splitlines()[:1])
        return (
            f"the work must fit in memory, and it does not{f' ({reason})' if reason else ''}. "
            "Take a smaller batch or model (--set train.batch=..., model.width=...), less data or another device."
        )
    if isinstance(error, UserError | OSError):
        return str(error)
    return None
