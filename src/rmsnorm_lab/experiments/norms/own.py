"""A norm of the user's own beside the built-in ones: ``--norm my_norm.py:MyNorm``, or ``package.module:MyNorm``.

It is a class or a function of the width. Its name in the registry, and so in records, tables and figures, ends in a
hash of its source: ``MyNorm@3f2a91c0``. After an edit it is another norm, whose runs are others.
"""

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from rmsnorm_lab.errors import USERS_FILES, UserError, nearest
from rmsnorm_lab.experiments import norms
from rmsnorm_lab.experiments.norms.base import Normaliser
from rmsnorm_lab.experiments.norms.own_check import checked
from rmsnorm_lab.files import sha256_of

_DIGITS = 8
"""Of the hash that are in the name."""


def registered(source: str) -> str:
    """The name, in the registry, of the norm that ``source`` names; it is registered if it is not yet.

    Raises:
        UserError: there is no such file or name, or what is there cannot be a norm.
    """
    place, _, attribute = source.rpartition(":")
    if not place or not attribute.isidentifier() or (place.startswith(".") and not place.endswith(".py")):
        raise UserError(
            f"a norm of your own must be FILE.py:NAME or package.module:NAME; got {source!r}. "
            "NAME is a class or a function in it."
        )
    module, content = _from_file(Path(place)) if place.endswith(".py") else _from_package(place)
    factory = getattr(module, attribute, None)
    if not callable(factory):
        if hasattr(module, attribute):
            what = f"its {attribute!r} is of type {type(factory).__name__}"
        else:
            what = f"it has no {attribute!r}"
        there = [name for name, each in vars(module).items() if callable(each) and not name.startswith("_")]
        meant = (
            nearest(attribute, there)
            or f" It has {', '.join(there[:10]) or 'no class and no function'}{', …' if there[10:] else ''}."
        )
        raise UserError(f"{place} must have {attribute!r}, a class or a function of the width; {what}.{meant}")
    USERS_FILES[str(module.__file__)] = place  # where it raises in training, the message names it
    name = f"{attribute}@{sha256_of(content + _elsewhere(factory, module))[:_DIGITS]}"
    if name not in norms.REGISTRY:
        colour, line = norms.look_of_other(name)
        norms.register(norms.Norm(name, name, colour, line, partial(Own, source, factory), source=source))
    return name


def _from_file(path: Path) -> tuple[ModuleType, bytes]:
    """The module of a file, executed once for each content, and the content."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"--norm must name a Python file that can be read; {str(path)!r} cannot: {error.strerror}. "
            f"It was looked for in {str(Path.cwd())!r}."
        ) from None
    name = f"rmsnorm_own_{sha256_of(content)}"
    if name not in sys.modules:
        module = ModuleType(name)
        module.__file__ = str(path.resolve())
        sys.modules[name] = module
        try:
            # Not by importlib: it would leave a __pycache__, and take an edit within the same second for the old file.
            exec(compile(content, module.__file__, "exec"), vars(module))
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            raise _not_imported(str(path), module.__file__, error) from error
    return sys.modules[name], content


def _from_package(name: str) -> tuple[ModuleType, bytes]:
    """An installed module, or one in the current folder, and the content of its file."""
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # last, so that nothing in it hides an installed package
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise _not_imported(name, None, error) from error
    if getattr(module, "__file__", None) is None:
        raise UserError(f"--norm must name a module that has a file; {name} has none. Name the module with the norm.")
    return module, _content(str(module.__file__))


def _not_imported(what: str, file: str | None, error: BaseException) -> UserError:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    where = f", line {lines[-1]}" if lines else ""
    hint = ""
    if isinstance(error, ModuleNotFoundError):
        hint = " A file must hold the whole norm; name a norm that imports its neighbours as package.module:NAME."
    return UserError(f"{what} must be importable; it is not: {type(error).__name__}{where}: {error}.{hint}")


def _elsewhere(factory: Any, module: ModuleType) -> bytes:
    """The source of a class or function that ``module`` has imported from another file."""
    try:
        file = inspect.getsourcefile(factory)
    except TypeError:  # a partial, or compiled
        return b""
    return b"" if file is None or file == module.__file__ else _content(file)


@cache
def _content(file: str) -> bytes:
    """As it was when it was imported: Python imports a module once."""
    return Path(file).read_bytes()


class Own(Normaliser):
    """The same module in every kernel setting, with its own parameters wherever the network normalises.

    Args:
        source: for messages.
        factory: width -> a module, or a function without parameters, from (..., width) to the same shape and dtype.
    """

    own_parameters = True

    def __init__(self, source: str, factory: Callable[[int], Any], kernels: str, p: float) -> None:
        super().__init__(kernels, p)
        self.source, self.factory, self.made = source, factory, 0

    def make_layer(self, width: int) -> nn.Module:
        # What it draws must not change the numbers that the network's weights are drawn from.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch.initial_seed() + self.made)
            self.made += 1
            return checked(self.source, self._new(width), width)

    def make_channels(self, width: int, spatial: bool) -> nn.Module:
        return _Channels(self.make_layer(width), width)

    def _new(self, width: int) -> nn.Module:
        try:
            made = self.factory(width)
        except (Exception, SystemExit) as error:
            raise UserError(
                f"{self.source} must take the width alone, here {width}; it raised {type(error).__name__}: {error}. "
                "Give its other arguments default values, or choose a network with another width (--set model....)."
            ) from error
        if isinstance(made, nn.Module):
            return made
        if not callable(made):
            raise UserError(
                f"{self.source} must give a torch.nn.Module, or a function of a tensor, for the width {width}; "
                f"it gave {type(made).__name__}."
            )
        return _Function(made)


class _Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class _Channels(nn.Module):
    """The channels of each position of (N, C, Y, X), or of (N, C), normalised; then a bias for each channel, since the
    convolutions below a norm have none."""

    def __init__(self, norm: nn.Module, width: int) -> None:
        super().__init__()
        self.norm, self.bias = norm, nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return (self.norm(x.movedim(1, -1)) + self.bias).movedim(-1, 1)
