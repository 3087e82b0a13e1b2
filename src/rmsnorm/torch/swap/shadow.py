"""A foreign module is run without its noticing: on a shadow with parameters of ours, all else being put back."""

import copy
import inspect
import random
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from rmsnorm.torch.swap.classes import original_class

FLOATING = torch.float16, torch.bfloat16, torch.float32, torch.float64

_HOOKS = [name for name, value in vars(nn.Module()).items() if "hook" in name and isinstance(value, dict)]


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
    if next(module.children(), None) is not None:
        raise Left("it has modules of its own")
    if any(b is not None for b in module._buffers.values()):
        raise Left("it has buffers")
    if any(_holds(value, Tensor) for name, value in vars(module).items() if name != "_parameters"):
        raise Left("it has tensors that are no parameters")
    if any(_holds(value, nn.Module) for value in vars(module).values()):
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


def _holds(value: object, kind: type) -> bool:
    """Whether ``value`` is of the kind, or a container that has one."""
    if isinstance(value, dict):
        return any(_holds(v, kind) for v in value.values())
    if isinstance(value, list | tuple | set | frozenset | deque):
        return any(_holds(v, kind) for v in value)
    return isinstance(value, kind)


def takes_one_argument(module: nn.Module) -> bool:
    """Whether forward can be called with the input alone."""
    try:
        inspect.signature(type(module).forward).bind(module, None)
    except (TypeError, ValueError):
        return False
    return True


def given(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that are not None."""
    return {name: p for name, p in module._parameters.items() if p is not None}


def key(module: nn.Module) -> tuple:
    """Two modules of one key compute the same from the same input and parameters."""
    attributes = []
    for name, value in sorted(vars(module).items()):
        if name in ("training", "_parameters", "_buffers", "_modules") or name in _HOOKS:
            continue
        plain = isinstance(value, int | float | str | bool | torch.dtype | torch.Size | type(None))
        plain = plain or (isinstance(value, tuple) and all(isinstance(v, int | float | str) for v in value))
        attributes.append((name, type(value), value if plain else id(value)))
    shapes = tuple((name, None if p is None else tuple(p.shape)) for name, p in module._parameters.items())
    return type(module), tuple(attributes), shapes


def shadow(module: nn.Module, parameters: dict[str, Tensor], training: bool) -> nn.Module:
    """A module of the same class and attributes with other parameters. Its forward is called, so hooks do not run."""
    twin = object.__new__(type(module))
    for name, value in vars(module).items():
        # What a forward might write to is copied; a configuration is shared.
        written = isinstance(value, list | set | dict | deque | bytearray | np.ndarray) and name != "_parameters"
        vars(twin)[name] = copy.deepcopy(value) if written and name not in _HOOKS else value
    vars(twin)["_parameters"] = {name: parameters.get(name) for name in module._parameters}
    vars(twin)["training"] = training
    return twin


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
