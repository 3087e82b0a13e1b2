"""Every argument of every public function and class, with a value of a wrong type.

A TypeError or ValueError names the argument and says what was received, or the value is taken for what it equals (a
tensor of one element for a number). Nothing else may happen.
"""

import inspect

import numpy as np
import pytest
import torch

import rmsnorm.numpy
import rmsnorm.torch


class Hostile:
    """Compared with anything, it raises."""

    __hash__ = None

    def __eq__(self, other):
        raise RuntimeError("no comparison")

    def __bool__(self):
        raise RuntimeError("no truth")


def functions(module, given):
    """(function, arguments that it takes) of every public name."""
    for name in module.__all__:
        function = getattr(module, name)
        if name in ("swap_norms", "profile_norms"):  # their models and steps: test_swap*.py, test_profile*.py
            continue
        arguments = {}
        for parameter in inspect.signature(function).parameters.values():
            needed = parameter.default is parameter.empty
            arguments[parameter.name] = given[parameter.name] if needed else parameter.default
        yield pytest.param(function, arguments, id=f"{module.__name__}.{name}")


def of_torch():
    x = torch.randn(3, 8)
    given = {"input": x, "residual": x + 1, "gate": x, "normalized_shape": 8, "input_size": 8, "hidden_size": 8}
    given |= {"q": x[None], "k": x[None], "cos": x, "sin": x}
    return functions(rmsnorm.torch, given)


def of_numpy():
    names = "x", "residual", "dy", "dnew_residual", "new_residual"
    return functions(rmsnorm.numpy, {name: np.ones((3, 8), np.float32) for name in names})


WRONG = {
    "object": object(),
    "hostile": Hostile(),
    "str": "x",
    "bytes": b"x",
    "list": [],
    "dict": {},
    "set": {8},
    "list of floats": [1.5],
    "tensor": torch.ones(2),
    "tensor of ints": torch.ones(2, dtype=torch.int64),
    "array": np.ones(2),
    "array of strings": np.array(["a"]),
    "complex": 1j,
    "NaN": float("nan"),
    "dtype": torch.float32,
    "class": object,
    "function": len,
    "slice": slice(2),
}
TORCHS = "device", "dtype"
"""Of modules, torch reads them, and raises its own errors."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("function", "arguments"), [*of_torch(), *of_numpy()])
def test_what_is_wrong_is_named(function, arguments):
    def call(**changed):
        result = function(**arguments | changed)
        if hasattr(result, "undo"):
            result.undo()

    call()
    for name in arguments:
        if inspect.isclass(function) and name in TORCHS:
            continue
        for kind, value in WRONG.items():
            try:
                call(**{name: value})
            except (TypeError, ValueError, NotImplementedError) as error:
                said = str(error)
                axes = "axis must" in said and "of 0 dimensions" in said  # a number is an array without axes
                if not axes and not (name in said and "got" in said):
                    pytest.fail(f"{name}={kind}: {type(error).__name__}: {said}")
            except Exception as error:
                pytest.fail(f"{name}={kind}: {type(error).__name__}: {error}")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x: rmsnorm.torch.rms_norm(x, True), "normalized_shape must be an int"),
        (lambda x: rmsnorm.torch.rms_norm(x, b"\x08"), "normalized_shape must be an int"),
        (lambda x: rmsnorm.torch.RMSNorm((True, 8)), "normalized_shape must be an int"),
        (lambda x: rmsnorm.torch.add_rms_norm(x, x, 8, inplace="no"), "inplace must be True or False, got 'no'"),
        (lambda x: rmsnorm.torch.add_rms_norm(x, x, 8, inplace=None), "inplace must be True or False, got None"),
        (lambda x: rmsnorm.torch.rms_norm(x, 8, zero_centered=torch.ones(2)), "zero_centered must be True"),
        (lambda x: rmsnorm.torch.rms_norm_quantized(x, 8, dtype=[]), r"dtype must be torch.int8 .* got \[\]"),
        (lambda x: rmsnorm.torch.rms_norm_gated(x, x, 8, groups=np.ones(2, int)), "groups must be an int"),
    ],
)
def test_what_was_taken_for_something_else(call, says):
    with pytest.raises(TypeError, match=says):
        call(torch.randn(1, 8))
