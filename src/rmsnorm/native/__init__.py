"""The C++ kernels: a module for each instruction-set level; the best that this processor runs is loaded as ``kernels``.

``RMSNORM_ISA`` forces a level. ``RMSNORM_NUM_THREADS`` sets the threads of the pool that serves NumPy, and torch before
2.10.

The functions of ``kernels`` take tensors and return ``True``, or ``False`` if they do not serve such arguments. They
never raise because an argument is wrong: the caller then checks the arguments with :mod:`rmsnorm.spec`, or uses another
implementation. The numbers that they take (flags, dtypes) are in codes.py.
"""

import importlib
import importlib.util
import os
import re
from operator import attrgetter
from types import ModuleType
from typing import Any

from rmsnorm.native.codes import (
    AUTOGRAD,
    COMPOSITE,
    DTYPES,
    FRESH,
    KERNEL,
    OWN_THREADS,
    ROUND_FIRST,
    ZERO_CENTERED,
    definitions,
)
from rmsnorm.spec import partial_count

__all__ = [
    "AUTOGRAD",
    "COMPOSITE",
    "DTYPES",
    "FRESH",
    "KERNEL",
    "OWN_THREADS",
    "ROUND_FIRST",
    "ZERO_CENTERED",
    "available_levels",
    "level",
    "missing",
]

MODULES = {"baseline": "_baseline", "x86-64": "_baseline", "x86-64-v3": "_v3", "x86-64-v4": "_v4"}

missing = (
    None
    if importlib.util.find_spec("rmsnorm.native._cpu")
    else "the C++ kernels are not built for this Python; `pip install .` in a checkout builds them (g++ or clang++)"
)
"""Why there are no kernels: the source tree was never built. ``kernels`` then raises this as an ImportError."""


FUNCTIONS = {
    "norm": 11,
    "norm_backward": 12,
    "gated": 10,
    "gated_backward": 13,
    "quantized": 10,
    "rotary": 12,
    "rotary_backward": 11,
    "recurrent_steps": 21,
    "RecurrentSteps.forward": 3,
    "RecurrentSteps.prepare_backward": 6,
    "RecurrentSteps.backward": 2,
    "RecurrentSteps.forward_layer": 5,
    "RecurrentSteps.backward_layer": 3,
    "RecurrentSteps.sums": 5,
    "way": 1,  # *tensors
    "num_threads": 0,
    "set_num_threads": 1,
    "set_partial_count": 1,
    "set_torch_parallel_for": 1,
    "set_exchange": 1,
    "set_way": 9,
}
"""What ``kernels`` must have: the functions, and how many arguments each takes."""

OLDER = (
    "rmsnorm's compiled modules are older than its Python files; run pip install again "
    "(`pip install --no-build-isolation -e .` in a checkout)"
)


def available_levels() -> tuple[str, ...]:
    """The instruction-set levels that this processor runs, best last."""
    cpu = importlib.import_module("rmsnorm.native._cpu")
    return cpu.levels()


def level() -> str:
    """The level whose kernels are loaded; ImportError where there are none."""
    if missing:
        raise ImportError(missing)
    return _level


def _choose() -> str:
    levels = available_levels()
    wanted = os.environ.get("RMSNORM_ISA", "")
    if wanted and wanted not in levels:
        raise ImportError(
            f"RMSNORM_ISA must name an instruction-set level that this processor runs ({', '.join(levels)}), "
            f"got {wanted!r}; unset it to use the best"
        )
    return wanted or levels[-1]


def _check_interface(kernels: Any) -> None:
    """An ImportError if ``kernels`` was built from sources that had other numbers, functions or arguments."""
    if getattr(kernels, "code_definitions", None) != definitions():
        raise ImportError(f"{OLDER}: {kernels.__file__} was built with other numbers than those of codes.py")
    for name, expected in FUNCTIONS.items():
        try:
            ((signature, *_),) = attrgetter(name)(kernels).__nb_signature__
        except AttributeError:
            raise ImportError(f"{OLDER}: {kernels.__file__} has no {name}") from None
        found = len(re.findall(r"\barg", signature))  # nanobind calls them arg0, arg1, …, or arg if there is one
        if found != expected:
            raise ImportError(
                f"{OLDER}: {name} of {kernels.__file__} takes {found} arguments, and {expected} are given"
            )


def _check_threads() -> None:
    wanted = os.environ.get("RMSNORM_NUM_THREADS")
    if wanted and not (wanted.isascii() and wanted.isdigit() and 1 <= int(wanted) <= 1024):
        raise ImportError(
            f"RMSNORM_NUM_THREADS must be a number of threads from 1 to 1024, got {wanted!r}; "
            "unset it to use every processor this process may run on"
        )


def __getattr__(name: str) -> Any:
    if name == "kernels" and missing:
        raise ImportError(missing)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_check_threads()
if not missing:
    _level = _choose()
    kernels: ModuleType = importlib.import_module(f"rmsnorm.native.{MODULES[_level]}")
    _check_interface(kernels)
    kernels.set_partial_count(partial_count)
