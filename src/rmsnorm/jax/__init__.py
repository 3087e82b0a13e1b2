"""RMSNorm, pRMSNorm and LayerNorm for JAX: C++ kernels on CPUs, ``jax.numpy`` expressions on other devices.

bfloat16, float16, float32 and, where JAX has it enabled, float64. The functions work under ``jit``, ``grad`` of any
order, ``jvp``, ``vmap`` and ``shard_map``. On CPUs the work is shared among ``RMSNORM_NUM_THREADS`` threads of this
package (default: the processors this process may use).
"""

import math
from functools import partial
from typing import Any

try:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.typing import ArrayLike
except ImportError as error:
    raise ImportError("rmsnorm.jax needs JAX: pip install 'rmsnorm[jax]'") from error
if jax.__version_info__ < (0, 8):
    raise ImportError(f"rmsnorm.jax needs JAX >= 0.8, got {jax.__version__}: pip install -U 'rmsnorm[jax]'")

from rmsnorm.jax import primitives
from rmsnorm.jax.expression import stored
from rmsnorm.jax.norm import Norm, compute_dtype
from rmsnorm.spec import (
    FLOATING,
    Axis,
    NormSpec,
    check_parameter,
    check_same,
    norm_spec,
    normalized_axes,
)

__all__ = ["add_rms_norm", "layer_norm", "rms_norm"]


def rms_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axis = -1,
    eps: float | None = None,
    p: float = 1.0,
    zero_centered: bool = False,
) -> jax.Array:
    r"""RMSNorm along ``axis``; with ``p`` < 1, pRMSNorm.

    .. math:: y_i = \frac{x_i}{\sqrt{\frac{1}{k} \sum_{j \le k} x_j^2 + \mathrm{eps}}} \, g_i + b_i, \qquad
              k = \lceil n p \rceil

    Args:
        x: any shape; bfloat16, float16, float32 or float64.
        weight: the gain g, of the shape of x along ``axis`` and any of these dtypes; None: 1. It may have one more
            dimension in front, a gain for each head: the size of x's last axis that is not normalised.
        bias: b, of any of these dtypes and of the weight's shape (without a weight, of either shape above); None: 0.
        axis: the normalised axis or axes; several are taken together, in x's order.
        eps: inside the root, a Python number; None: machine epsilon of the computation dtype.
        p: the RMS is taken of the first k = ⌈n·p⌉ elements; 0 < p ≤ 1, a Python number.
        zero_centered: the gain is 1 + weight.

    The computation dtype is float32, or float64 for float64 inputs, with one rounding at the end, to x's dtype.

    Returns:
        y, of x's shape and dtype.

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if an argument has a wrong value or shape.
        NotImplementedError: if rows, weight or bias are sharded over explicit axes of a mesh.

    Source: Zhang & Sennrich, "Root Mean Square Layer Normalization" (2019), §3 and §3.2.

    Example:
        >>> x = jnp.array([[1.0, 7.0]])
        >>> rms_norm(x, eps=0.0)
        Array([[0.2, 1.4]], dtype=float32)
        >>> rms_norm(x, eps=0.0, p=0.5)  # the RMS of the first element
        Array([[1., 7.]], dtype=float32)
    """
    return _checked("rms", x, None, weight, bias, axis, eps, p, zero_centered)[0]


def layer_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axis = -1,
    eps: float = 1e-5,
) -> jax.Array:
    r"""LayerNorm along ``axis``, in the same kernels as :func:`rms_norm`.

    .. math:: y_i = \frac{x_i - \mu}{\sqrt{\frac{1}{n} \sum_j (x_j - \mu)^2 + \mathrm{eps}}} \, g_i + b_i, \qquad
              \mu = \frac{1}{n} \sum_j x_j

    Args:
        x, weight, bias, axis, eps: as in :func:`rms_norm`, and so are the dtypes.

    Returns:
        y, of x's shape and dtype.

    Raises:
        TypeError, ValueError: as :func:`rms_norm`.

    Source: Ba, Kiros & Hinton, "Layer Normalization" (2016).

    Example:
        >>> layer_norm(jnp.array([[1.0, 3.0]])).round(4)
        Array([[-1.,  1.]], dtype=float32)
    """
    return _checked("layer", x, None, weight, bias, axis, eps)[0]


def add_rms_norm(
    x: ArrayLike,
    residual: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axis = -1,
    eps: float | None = None,
    p: float = 1.0,
    zero_centered: bool = False,
) -> tuple[jax.Array, jax.Array]:
    r"""The residual step of a pre-norm network: add, then normalise.

    .. math:: s = x + \mathrm{residual}, \qquad y = \mathrm{rms\_norm}(s)

    s is rounded to the residual's dtype before it is normalised. If x and residual differ in dtype, y is rounded to
    the residual's dtype and then to x's.

    Args:
        x: any shape, as in :func:`rms_norm`.
        residual: of x's shape and any of its dtypes.
        weight, bias, axis, eps, p, zero_centered: as in :func:`rms_norm`.

    Returns:
        (y, s): y in x's dtype, s in the residual's.

    Raises:
        TypeError, ValueError: as :func:`rms_norm`.

    Source: the pre-norm block, e.g. Xiong et al., "On Layer Normalization in the Transformer Architecture" (2020).

    Example:
        >>> add_rms_norm(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 5.0]]), eps=0.0)
        (Array([[0.2, 1.4]], dtype=float32), Array([[1., 7.]], dtype=float32))
    """
    x, residual = _floating("x", x), _floating("residual", residual)
    check_same("residual", residual.shape, "x", x.shape, "shape")
    if x.dtype == residual.dtype:
        y, total = _checked("rms", x, residual, weight, bias, axis, eps, p, zero_centered)
        return y, total
    wide = jnp.promote_types(compute_dtype(x.dtype), compute_dtype(residual.dtype))
    total = stored((x.astype(wide) + residual.astype(wide)).astype(residual.dtype))
    (y,) = _checked("rms", total, None, weight, bias, axis, eps, p, zero_centered)
    return y.astype(x.dtype), total


def _checked(
    kind: str,
    x: ArrayLike,
    residual: ArrayLike | None,
    weight: ArrayLike | None,
    bias: ArrayLike | None,
    axis: Axis,
    eps: float | None,
    p: float = 1.0,
    zero_centered: bool = False,
) -> tuple[jax.Array, ...]:
    given = {
        name: _floating(name, value)
        for name, value in (("x", x), ("residual", residual), ("weight", weight), ("bias", bias))
        if value is not None or name == "x"
    }
    shape, dtype = given["x"].shape, given["x"].dtype
    axes = normalized_axes(axis, len(shape))
    spec = norm_spec(kind, tuple(shape[a] for a in axes), eps, p, zero_centered)
    outer = [extent for a, extent in enumerate(shape) if a not in axes]
    parameters = {name: a for name, a in given.items() if name in ("weight", "bias")}
    for name, a in parameters.items():
        check_parameter(name, a.shape, a.dtype.name, spec.normalized_shape, outer[-1] if outer else None)
    if len(parameters) == 2:
        check_same("bias", parameters["bias"].shape, "weight", parameters["weight"].shape, "shape")
    return _by_device(given, axes, _norm(spec, dtype))


def _by_device(given: dict[str, jax.Array], axes: tuple[int, ...], norm: Norm) -> tuple[jax.Array, ...]:
    """The norm; of arrays whose types are sharded (meshes with explicit axes), each device's rows there."""
    specs = {name: jax.typeof(a).sharding.spec for name, a in given.items()}
    used = {name: [axis for axis in spec if axis is not None] for name, spec in specs.items()}
    if not any(used.values()):
        return _normed(given, axes, norm)
    x = specs["x"]
    whole_rows = all(x[a] is None for a in axes) and specs.get("residual", x) == x
    if not whole_rows or used.get("weight") or used.get("bias"):
        raise NotImplementedError(
            "a row must lie on one device, residual must be sharded as x, weight and bias not at all; got "
            + ", ".join(f"{name}: {jax.typeof(a)}" for name, a in given.items())
            + f", axes {axes}; reshard them first (jax.reshard)"
        )
    for name in given.keys() & {"weight", "bias"}:
        if given[name].ndim > len(axes):  # a device takes the gains of its own heads
            head = [spec for a, spec in enumerate(x) if a not in axes][-1]
            specs[name] = jax.sharding.PartitionSpec(head, *[None] * len(axes))
            given = given | {name: jax.reshard(given[name], specs[name])}
    mesh = jax.typeof(given["x"]).sharding.mesh
    local = jax.shard_map(lambda given: _normed(given, axes, norm), mesh=mesh, in_specs=(specs,), out_specs=x)
    return tuple(local(given))


def _norm(spec: NormSpec, dtype: Any) -> Norm:
    eps = float(jnp.finfo(compute_dtype(dtype)).eps) if spec.eps is None else spec.eps
    return Norm(spec.kind, spec.k, eps, spec.zero_centered)


@partial(jax.jit, static_argnums=(1, 2), inline=True)
def _normed(given: dict[str, jax.Array], axes: tuple[int, ...], norm: Norm) -> tuple[jax.Array, ...]:
    """The norm of checked arrays: the normalised axes become the last one, and those of heads the one before."""
    x = given["x"]
    last = tuple(range(x.ndim - len(axes), x.ndim))
    moved = jnp.moveaxis(x, axes, last).shape
    outer, n = moved[: x.ndim - len(axes)], math.prod(moved[x.ndim - len(axes) :])
    parameter = given.get("weight", given.get("bias"))
    heads = parameter.shape[0] if parameter is not None and parameter.ndim > len(axes) else 1
    rows = math.prod(outer[:-1]) if heads > 1 else math.prod(outer)
    arranged: dict[str, jax.Array] = {
        name: jnp.moveaxis(given[name], axes, last).reshape(1, rows, heads, n)
        for name in ("x", "residual")
        if name in given
    }
    arranged |= {name: given[name].reshape(1, heads, n) for name in ("weight", "bias") if name in given}
    return tuple(jnp.moveaxis(o.reshape(moved), last, axes) for o in primitives.norm(arranged, norm))


def _floating(name: str, value: Any) -> jax.Array:
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        if type(value) is np.ndarray:  # JAX has no such dtype: objects, texts, other byte orders, extended precision
            raise TypeError(_not_floating(name, value.dtype.str)) from None
        raise TypeError(f"{name} must be an array, got {type(value).__name__} ({error})") from None
    if array.dtype.name not in FLOATING:
        raise TypeError(_not_floating(name, array.dtype.name))
    return array


def _not_floating(name: str, dtype: str) -> str:
    return f"{name} must be of a floating dtype ({', '.join(FLOATING)}), got {dtype}; convert it first"
