"""A foreign module is run without its noticing: on a shadow with parameters of ours and copies of all that it reaches.

What cannot be copied, or is no attribute (a global, a variable of an outer function, an attribute of the class), is
compared before and after, and put back.
"""

import copy
import inspect
import random
import types
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from rmsnorm.torch.snapshot import Snapshot
from rmsnorm.torch.swap.classes import original_class

FLOATING = torch.float16, torch.bfloat16, torch.float32, torch.float64

_OF_ANY = vars(nn.Module()).keys()
_HOOKS = [name for name, value in vars(nn.Module()).items() if "hook" in name and isinstance(value, dict)]
_OWN = {"_parameters", "training", "forward", *_HOOKS}


class Left(Exception):
    """Why a module is left as it is."""


def check_structure(module: nn.Module) -> None:
    """A module that can be run on a shadow and replaced by one call; otherwise Left says why not."""
    if original_class(module):
        raise Left("it is swapped already")
    if isinstance(module, torch.jit.ScriptModule):
        raise Left("it is compiled by torch.jit")
    if "forward" in vars(module):
        raise Left("its forward was replaced on the instance; swap before that is done")
    if nn.utils.parametrize.is_parametrized(module):
        raise Left("its parameters are parametrized; swap before that is done")
    if next(module.children(), None) is not None:
        raise Left("it has modules of its own")
    if any(b is not None for b in module._buffers.values()):
        raise Left("it has buffers")
    reached = _reached(_attributes(module), without=module)
    if any(isinstance(value, Tensor) for value in reached):
        raise Left("it has tensors that are no parameters")
    if any(isinstance(value, nn.Module) for value in reached):
        raise Left("it has modules of its own")
    parameters = given(module)
    if len(parameters) > 2:
        raise Left(f"it has {len(parameters)} parameters, a norm has a gain and a bias")
    if any(nn.parameter.is_lazy(p) for p in parameters.values()):
        raise Left("its parameters have no shape yet; run the model once before")
    for name, p in parameters.items():
        if p.dtype not in FLOATING:
            raise Left(f"{name} is of dtype {p.dtype}, which no kernel takes")
        own = getattr(module, "normalized_shape", None) is not None
        if not own and (p.dim() > 2 or (p.dim() == 2 and p.shape[0] == 1)):
            raise Left(f"{name} has the shape {tuple(p.shape)}; one for the last dimension, or for heads, is taken")
        if not p.numel() or p.dim() == 0 or p.shape[-1] < 2:
            raise Left(f"{name} has the shape {tuple(p.shape)}, which is no gain of a norm")
    if len({p.shape for p in parameters.values()}) > 1:
        raise Left("its parameters differ in shape")


_NOT_ENTERED = type | types.ModuleType | types.FunctionType | types.BuiltinFunctionType | torch.dtype | torch.device
_CONTAINERS = list | tuple | set | frozenset | deque
MOST = 10_000
"""Objects; a module that reaches more is not copied."""


def _names_of(value: Any) -> dict[str, Any]:
    """Its attributes, if it has a dictionary of them."""
    try:
        return vars(value)
    except TypeError:
        return {}


def _attributes(module: nn.Module) -> list[Any]:
    """What a shadow has a copy of."""
    return [value for name, value in vars(module).items() if name not in _OWN]


def _reached(roots: list[Any], without: nn.Module) -> list[Any]:
    """The roots and what they hold: elements, values and attributes. Tensors and modules are not entered."""
    found: dict[int, Any] = {id(without): None}
    rest = list(roots)
    while rest:
        value = rest.pop()
        if id(value) in found or isinstance(value, str | bytes | int | float | None | _NOT_ENTERED):
            continue
        if len(found) > MOST:
            raise Left(f"it reaches more than {MOST} objects, which the probe does not copy")
        found[id(value)] = value
        if isinstance(value, Tensor | nn.Module):
            continue
        if isinstance(value, types.MethodType):
            rest.append(value.__self__)
        elif isinstance(value, dict):
            rest += dict.values(value)
        elif isinstance(value, _CONTAINERS):
            rest += value
        rest += _names_of(value).values()
    return [value for value in found.values() if value is not None]


def elements_copied(module: nn.Module) -> int:
    """How many numbers a shadow copies: those of tensors and modules that an attribute reaches."""
    reached = _reached(_attributes(module), without=module)
    within = (t for each in reached if isinstance(each, nn.Module) for t in (*each.parameters(), *each.buffers()))
    return sum(t.numel() for t in (*within, *(each for each in reached if isinstance(each, Tensor))))


def takes_one_argument(module: nn.Module) -> bool:
    """Whether forward can be called with the input alone."""
    try:
        inspect.signature(type(module).forward).bind(module, None)
    except (TypeError, ValueError):
        return False
    return True


def required_arguments(module: nn.Module) -> int:
    """How many arguments forward must be given by position."""
    takes = list(inspect.signature(type(module).forward).parameters.values())[1:]
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    return sum(each.kind in kinds and each.default is inspect.Parameter.empty for each in takes)


def given(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that are not None."""
    return {name: p for name, p in module._parameters.items() if p is not None}


def key(module: nn.Module) -> tuple:
    """Two modules of one key compute the same from the same input and parameters."""
    attributes = []
    for name, value in sorted(vars(module).items()):
        if name in _OF_ANY:
            continue
        plain = isinstance(value, int | float | str | bool | torch.dtype | torch.Size | type(None))
        plain = plain or (isinstance(value, tuple) and all(isinstance(v, int | float | str) for v in value))
        attributes.append((name, type(value), value if plain else id(value)))
    shapes = tuple((name, None if p is None else tuple(p.shape)) for name, p in module._parameters.items())
    return type(module), tuple(attributes), shapes


def shadow(module: nn.Module, parameters: dict[str, Tensor], training: bool) -> nn.Module:
    """A module of the same class with other parameters and with copies of the attributes, as far as these can be
    copied. Its forward is called, so hooks do not run."""
    twin = object.__new__(type(module))
    memo: dict[int, Any] = {id(module): twin}
    for name, value in vars(module).items():
        vars(twin)[name] = value if name in _OWN else _copied(value, memo)
    vars(twin).pop("forward", None)
    vars(twin)["_parameters"] = {name: parameters.get(name) for name in module._parameters}
    vars(twin)["training"] = training
    return twin


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # a lock, a file, a class that refuses: it is watched
        return value


@contextmanager
def unwritten(module: nn.Module) -> Iterator[None]:
    """Left, and all is put back, if something was written that the shadows share with the module or with others."""
    bindings = list(_bindings(type(module)))
    shared = [value for value in _attributes(module) if _copied(value, {id(module): module}) is value]
    shared = _reached(shared, without=module) + [value for *_, value in bindings]
    held = Snapshot(*shared, *(_names_of(v) for v in shared if not isinstance(v, nn.Module | _NOT_ENTERED)))
    try:
        yield
    finally:
        written = held.differs()
        held.restore()
        for read, write, value in bindings:
            if read() is not value:
                written = True
                write(value)
    if written:
        raise Left("its forward writes to what others share with it")


def _bindings(kind: type[nn.Module]) -> Iterator[tuple[Callable[[], Any], Callable[[Any], object], Any]]:
    """How to read and write what forward names outside of the module, and the value: globals, variables of functions
    around it, attributes of its classes."""
    code = getattr(kind.forward, "__code__", None)
    if code is not None:
        around = kind.forward.__globals__
        for name in around.keys() & set(code.co_names):
            yield partial(around.get, name), partial(around.__setitem__, name), around[name]
        for name, cell in zip(code.co_freevars, kind.forward.__closure__ or (), strict=True):
            if name != "__class__":
                yield (
                    partial(getattr, cell, "cell_contents"),
                    partial(setattr, cell, "cell_contents"),
                    cell.cell_contents,
                )
    for each in kind.__mro__:
        if each is not object and each.__module__.partition(".")[0] != "torch":
            for name, value in vars(each).items():
                yield partial(vars(each).get, name), partial(setattr, each, name), value


def with_attribute(module: nn.Module, name: str, value: object) -> nn.Module:
    """A module that shares everything with ``module`` except for one attribute."""
    twin = object.__new__(type(module))
    vars(twin).update({**vars(module), name: value})
    return twin


@contextmanager
def undisturbed() -> Iterator[None]:
    """Modes of the caller are off and random states are put back; Left if random numbers were drawn."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  the module's, not ours
    dtype = torch.get_default_dtype()
    with (
        _disable_current_modes(),  # FakeTensorMode, whose tensors have no numbers to judge by
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.device("cpu"),
    ):
        warnings.simplefilter("ignore")
        before = torch.random.get_rng_state()
        torch.set_default_dtype(torch.float32)
        try:
            yield
            drawn = not torch.equal(before, torch.random.get_rng_state())
        finally:
            torch.set_default_dtype(dtype)
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
    if drawn:
        raise Left("it draws random numbers")


def run(module: nn.Module, parameters: dict[str, Tensor], *inputs: Tensor, training: bool = False) -> Tensor:
    """The module's result for parameters and inputs of ours; Left if that is no tensor of the input's shape."""
    before = [t.detach().clone() for t in inputs]
    y = shadow(module, parameters, training).forward(*inputs)
    if not isinstance(y, Tensor):
        raise Left(f"it returns a {type(y).__name__}, not one tensor")
    if y.shape != inputs[0].shape:
        raise Left(f"it makes {tuple(y.shape)} of {tuple(inputs[0].shape)}")
    if not all(((t == b) | (t.isnan() & b.isnan())).all() for t, b in zip(inputs, before, strict=True)):
        raise Left("it writes into its input")
    return y
