"""The one exception of the command line, for what the user can mend, and suggestions of what was meant."""

import argparse
import difflib
import sys
import traceback
from collections.abc import Iterable


class UserError(Exception):
    """Wrong input to a command. The message says what must hold, what was received and what to do; no traceback."""


def nearest(got: str, known: Iterable[str]) -> str:
    """The end of a message, ``" Did you mean 'rms'?"``; empty if no known name is similar to ``got``."""
    return meant(closest(got, known))


def nearest_flag(got: str, parser: argparse.ArgumentParser) -> str:
    """The same of the flags that a command has; ``got`` may have a value: ``--sed=1``."""
    return nearest(got.partition("=")[0], (flag for action in parser._actions for flag in action.option_strings))


def meant(name: str | None) -> str:
    """The end of a message that suggests a name, if there is one."""
    return "" if name is None else f" Did you mean {name!r}?"


def closest(got: str, known: Iterable[str]) -> str | None:
    """The known name that is most similar to ``got``; None if none is similar."""
    # All flags have dashes, so dashes do not count.
    plain = {name.lower().lstrip("-"): name for name in known}
    found = difflib.get_close_matches(got.lower().lstrip("-"), plain, n=1)
    return plain[found[0]] if found else None


_NO_MEMORY = ("can't allocate memory", "out of memory", "Storage size calculation overflowed")
"""Parts of torch's RuntimeErrors: from the CPU's allocator, a device's, and for sizes beyond 64 bits."""


def sentence(error: Exception, command: str) -> str | None:
    """The message for an error that the user of a command can mend; None if it is a defect of this program."""
    if isinstance(error, ModuleNotFoundError) and not (error.name or "rmsnorm").startswith("rmsnorm"):
        extra, whose = ("bench", "the benchmark's") if command == "bench" else ("experiments", "the experiments'")
        package = (error.name or "").partition(".")[0]
        return (
            f"this command needs {whose} packages; {package!r} is not installed. "
            f"Run: {sys.executable} -m pip install 'rmsnorm[{extra}]'"
        )
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
    return _in_users_file(error)


USERS_FILES: dict[str, str] = {}
"""File -> its name on the command line: Python files of the user that take part in a training."""


def _in_users_file(error: Exception) -> str | None:
    """The message for an error that came from one of :data:`USERS_FILES`, or through it."""
    frames = traceback.extract_tb(error.__traceback__)
    last = next((frame for frame in reversed(frames) if frame.filename in USERS_FILES), None)
    if last is None:
        return None
    return (
        f"{USERS_FILES[last.filename]} must take every input of the network; line {last.lineno} of it raised "
        f"{type(error).__name__}: {error}. Mend that line."
    )
