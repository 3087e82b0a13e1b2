"""The C++ kernels as XLA calls them on a CPU (handlers.cpp): registration, and lowering a primitive to a call."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import jax
import numpy as np
from jax.interpreters import mlir

from rmsnorm import native
from rmsnorm.jax.norm import Names, Norm
from rmsnorm.native.codes import NORM_KINDS

FORWARD = ("x", "residual", "weight", "bias"), ("y", "sum")
BACKWARD = ("x", "dy", "weight", "bias", "plus"), ("dx", "dweight", "dbias")
"""A handler's arguments and results, in the order of their bits."""


def _register() -> str | None:
    """Why XLA cannot call the kernels; None: it can."""
    if native.missing:
        return native.missing
    try:
        handlers = import_module("rmsnorm.jax._ffi").connect(native.kernels.c_api)
    except ImportError:
        return "rmsnorm.jax._ffi is not built; `pip install .` in a checkout builds it"
    if handlers is None:
        return "rmsnorm.jax._ffi is of another version of rmsnorm than its kernels; install it again"
    try:
        for name, handler in zip(("rmsnorm_forward", "rmsnorm_backward"), handlers, strict=True):
            jax.ffi.register_ffi_target(name, handler, platform="cpu")
    except Exception as error:  # XLA refuses handlers that are too old for it
        return f"jaxlib refuses the handlers: {error}"
    return None


def _bits(names: Names, order: Names) -> np.int64:
    return np.int64(sum(1 << order.index(name) for name in names))


def _call(target: str, arguments: Names, results: Names, of: Norm) -> Callable[..., Any]:
    """The lowering rule of a call with these arguments and results."""
    orders = FORWARD if target == "rmsnorm_forward" else BACKWARD
    flags = native.OWN_THREADS | native.FRESH | (native.ZERO_CENTERED if of.zero_centered else 0)
    attributes = {
        "arguments": _bits(arguments, orders[0]),
        "results": _bits(results, orders[1]),
        "kind": np.int64(NORM_KINDS.index(of.kind)),
        "k": np.int64(of.k),
        "eps": np.float64(of.eps),
        "flags": np.int64(flags),
    }
    rule = jax.ffi.ffi_lowering(target)

    def lowered(context: Any, *operands: Any) -> list[Any]:
        groups, _, heads, n = context.avals_in[0].shape
        shape = {"groups": np.int64(groups), "heads": np.int64(heads), "n": np.int64(n)}
        flat_in, flat_out = list(map(_flat, context.avals_in)), list(map(_flat, context.avals_out))
        given = map(partial(_reshaped, context), operands, context.avals_in, flat_in)
        found = rule(context.replace(avals_in=flat_in, avals_out=flat_out), *given, **attributes, **shape)
        return list(map(partial(_reshaped, context), found, flat_out, context.avals_out))

    return lowered


def _flat(aval: Any) -> Any:
    """XLA chooses an order of its own for dimensions of 1, and would copy an array to bring it into the handler's."""
    return jax.core.ShapedArray((math.prod(aval.shape),), aval.dtype)


def _reshaped(context: Any, value: Any, before: Any, after: Any) -> Any:
    reshape = mlir.lower_fun(lambda a: jax.lax.reshape(a, after.shape), multiple_results=False)
    (made,) = reshape(context.replace(primitive=None, avals_in=[before], avals_out=[after]), value)
    return made


def lower_norm(context: Any, *operands: Any, names: Names, norm: Norm) -> Sequence[Any]:
    """The lowering rule of ``primitives.norm_p`` on a CPU."""
    results = ("y", "sum") if "residual" in names else ("y",)
    return _call("rmsnorm_forward", names, results, norm)(context, *operands)


def lower_backward(context: Any, *operands: Any, names: Names, norm: Norm, wants: Names) -> Sequence[Any]:
    """The lowering rule of ``primitives.backward_p`` on a CPU."""
    return _call("rmsnorm_backward", names, wants, norm)(context, *operands)


missing = _register()
"""Why CPU arrays are served by the expression; None: the kernels serve them."""
