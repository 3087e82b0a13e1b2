"""The one exception of the command line, something the user can mend, and what helps to mend a wrong name."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Wrong input to a command. The message says what must hold, what was received and what to do; no traceback."""


def nearest(got: str, known: Iterable[str]) -> str:
    """``" Did you mean 'rms'?"`` where ``got`` is much like something known, else nothing: the end of a message."""
    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(got.lower(), by_lower, n=1)
    return f" Did you mean {by_lower[found[0]]!r}?" if found else ""
