"""The norms as primitives of JAX, with the rules of its transformations.

- ``norm_p``: (y,), or (y, sum) of x and a residual.
- ``tangent_p``: its derivative along tangents, which are its linear arguments. Forward mode evaluates it, by the
  expression. Reverse mode transposes it, which is a backward pass on the kernels.
- ``backward_p``: the gradients.

Derivatives of the latter two are those of the expression. A custom_vjp would have no forward mode, and a custom_jvp no
backward pass of its own.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from rmsnorm.jax import expression, kernels
from rmsnorm.jax.norm import PARAMETERS, Names, Norm, varying_alike

Array = jax.Array


def _primitive(name: str, evaluate: Any, abstract: Any, lowering: Any = None) -> Any:
    """A primitive that XLA compiles from the expression ``evaluate``, on CPUs by ``lowering`` where one is given."""
    primitive = Primitive(f"rmsnorm_{name}")
    primitive.multiple_results = True
    static = ("names", "norm", "sums", "wants")

    def one_operation(*arrays: Any, **params: Any) -> Any:
        return primitive.bind(*arrays, **params)

    one_operation.__qualname__ = primitive.name
    # jax_debug_nans takes a jitted function that has made a NaN apart. This mark ends that with an error that names it.
    one_operation._apply_primitive = True  # type: ignore[attr-defined]
    compiled = jax.jit(one_operation, static_argnames=static)

    def impl(*arrays: Any, **params: Any) -> Any:
        with jax.disable_jit(False):  # a primitive is one operation where jit is off, too
            return compiled(*arrays, **params)

    primitive.def_impl(impl)
    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(primitive, mlir.lower_fun(evaluate, multiple_results=True))
    if lowering and not kernels.missing:
        mlir.register_lowering(primitive, lowering, platform="cpu")
    batching.primitive_batchers[primitive] = partial(_batch, primitive)
    return primitive


def _bind(primitive: Any, given: dict[str, Any], **params: Any) -> list[Any]:
    return primitive.bind(*varying_alike(list(given.values())), names=tuple(given), **params)


# ---- what a call returns ----


def _abstract_norm(*avals: Any, names: Names, norm: Norm) -> list[Any]:
    return [_strong(avals[0])] * (2 if "residual" in names else 1)


def _abstract_tangent(*avals: Any, names: Names, norm: Norm, sums: bool) -> list[Any]:
    return [_strong(avals[0])] * (2 if sums else 1)


def _abstract_backward(*avals: Any, names: Names, norm: Norm, wants: Names) -> list[Any]:
    given = dict(zip(names, avals, strict=True))
    return [_strong(given[name.removeprefix("d")]) for name in wants]


def _strong(aval: Any) -> Any:
    return aval.update(weak_type=False)


# ---- vmap ----


def _batch(primitive: Any, args: Sequence[Any], dims: Sequence[int | None], *, names: Names, **params: Any) -> Any:
    """More rows; more groups where gains, biases or their gradients are mapped over."""
    if any(axis is not None for a in args for axis in jax.typeof(a).sharding.spec):
        raise NotImplementedError(
            "vmap does not take the rows of arrays that are sharded over explicit axes of a mesh, got "
            + ", ".join(f"{name}: {jax.typeof(a)}" for name, a in zip(names, args, strict=True))
            + "; call the norm with the whole array, whose rows it normalises anyway, or vmap inside of jax.shard_map"
        )
    (size,) = {a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None}
    wants = params.get("wants", ())
    mapped = {name for name, d in zip(names, dims, strict=True) if d is not None}
    groups = any(name in PARAMETERS for name in (*mapped, *wants))
    axis = 0 if groups else 1  # what the mapped dimension is merged with
    given, extent = {}, 0
    for name, a, d in zip(names, args, dims, strict=True):
        if name in PARAMETERS and not groups:
            given[name] = a
            continue
        a = jnp.broadcast_to(a, (size, *a.shape)) if d is None else jnp.moveaxis(a, d, 0)
        a, extent = jnp.moveaxis(a, 0, axis), a.shape[axis + 1]
        given[name] = a.reshape(*a.shape[:axis], size * extent, *a.shape[axis + 2 :])
    outs = _bind(primitive, given, **params)
    return [o.reshape(*o.shape[:axis], size, extent, *o.shape[axis + 1 :]) for o in outs], [axis] * len(outs)


# ---- derivatives ----


def _jvp_norm(primals: Sequence[Any], tangents: Sequence[Any], *, names: Names, norm: Norm) -> Any:
    outs = norm_p.bind(*primals, names=names, norm=norm)
    given, moved = dict(zip(names, primals, strict=True)), dict(zip(names, tangents, strict=True))
    residual = moved.pop("residual", None)
    if residual is not None:
        moved["x"] = ad.add_tangents(moved["x"], residual)
    moved = {f"d{name}": t for name, t in moved.items() if type(t) is not ad.Zero}
    zeros = [ad.Zero(jax.typeof(o)) for o in outs]
    if not moved:
        return outs, zeros
    fixed = given | {"x": outs[-1]} if residual is not None else given
    fixed = {name: a for name, a in fixed.items() if name != "residual"}
    sums = residual is not None and "dx" in moved
    found = _bind(tangent_p, fixed | moved, norm=norm, sums=sums)
    return outs, [*found, *zeros[len(found) :]]


def _transpose_tangent(cts: Sequence[Any], *args: Any, names: Names, norm: Norm, sums: bool) -> list[Any]:
    given = dict(zip(names, args, strict=True))
    wants = tuple(name for name, a in given.items() if ad.is_undefined_primal(a))
    dy, plus = cts[0], cts[1] if sums else None
    plus = None if type(plus) is ad.Zero else plus
    if type(dy) is ad.Zero:
        found = {"dx": plus}
    else:
        fixed = {"x": given["x"], "dy": dy} | {name: given[name] for name in ("weight", "bias") if name in given}
        if plus is not None and "dx" in wants:
            fixed["plus"] = plus
        found = dict(zip(wants, _bind(backward_p, fixed, norm=norm, wants=wants), strict=True))
    return [found.get(name) if name in wants else None for name in names]


def _jvp_expression(
    primitive: Any, evaluate: Any, primals: Sequence[Any], tangents: Sequence[Any], **params: Any
) -> Any:
    """The primitive's results, and their tangents as the expression's."""
    outs = primitive.bind(*primals, **params)
    moving = [i for i, t in enumerate(tangents) if type(t) is not ad.Zero]

    def function(*moved: Any) -> Any:
        args = list(primals)
        for i, value in zip(moving, moved, strict=True):
            args[i] = value
        return evaluate(*args, **params)

    _, found = jax.jvp(function, [primals[i] for i in moving], [tangents[i] for i in moving])
    return outs, list(found)


norm_p = _primitive("norm", expression.norm, _abstract_norm, kernels.lower_norm)
tangent_p = _primitive("tangent", expression.tangent, _abstract_tangent)
backward_p = _primitive("backward", expression.backward, _abstract_backward, kernels.lower_backward)

ad.primitive_jvps[norm_p] = _jvp_norm
ad.primitive_transposes[tangent_p] = _transpose_tangent
ad.primitive_jvps[tangent_p] = partial(_jvp_expression, tangent_p, expression.tangent)
ad.primitive_jvps[backward_p] = partial(_jvp_expression, backward_p, expression.backward)


def norm(given: dict[str, Any], of: Norm) -> list[Any]:
    """(y,), or (y, sum) where a residual is given, of the arrays by their names."""
    return _bind(norm_p, given, norm=of)
