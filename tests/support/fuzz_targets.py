"""The public functions as fuzz_arguments.py calls them: a valid call of each, with what it must give."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import torch

import fuzz_oracles as oracles
from fuzz_reading import ARRAYS, FLOATS
from rmsnorm import numpy as rn
from rmsnorm import torch as rt


@dataclass(frozen=True)
class Target:
    name: str
    call: Callable[..., Any]
    arguments: Callable[[random.Random], dict[str, Any]]
    oracle: Callable[..., list[np.ndarray | None]]
    written: tuple[str, ...] = ()  # arguments that the call may write
    error: float = 0.0  # by which the largest result may be off beyond roundings


# ---- valid calls ----


def draw(r: random.Random, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(r.randrange(1 << 30))
    room = torch.randn(math.prod(shape) + 16, generator=generator, dtype=torch.float64).to(dtype)
    return room[8 : 8 + math.prod(shape)].view(shape)  # what lies beside it must stay as it is


def sizes(r: random.Random) -> tuple[tuple[int, ...], tuple[int, ...]]:
    n = r.choice([(1,), (2,), (5,), (16,), (33,), (64,), (3, 4), (0,), (130,)])
    return (*r.choice([(), (0,), (1,), (3,), (2, 3), (40,)]), *n), n


def common(r: random.Random, norm: str = "rms") -> dict[str, Any]:
    dtype = r.choice(FLOATS)
    shape, n = sizes(r)
    d = {"input": draw(r, *shape, dtype=dtype), "normalized_shape": n}
    for name in ("weight", "bias"):
        d[name] = None if r.random() < 0.3 else draw(r, *n, dtype=r.choice(FLOATS))
    d["eps"] = r.choice([0.1, 0.25])
    if norm == "rms":
        d |= {"p": r.choice([1.0, 1.0, 0.5]), "zero_centered": r.random() < 0.3, "casting": "once"}
    return d


def with_out(r: random.Random, norm: str) -> dict[str, Any]:
    d = common(r, norm)
    return d | {"out": draw(r, *d["input"].shape, dtype=d["input"].dtype)}


def with_dy(r: random.Random, norm: str) -> dict[str, Any]:
    d = common(r, norm)
    return d | {"dy": draw(r, *d["input"].shape, dtype=d["input"].dtype)}


def with_residual(r: random.Random, **more: Any) -> dict[str, Any]:
    d = common(r)
    if more.get("inplace"):
        d["casting"] = "once"
    return d | {"residual": draw(r, *d["input"].shape, dtype=d["input"].dtype)} | more


def of_gated(r: random.Random, gradient: bool = False) -> dict[str, Any]:
    d = common(r)
    n = math.prod(d["normalized_shape"])
    found = {k: d[k] for k in ("input", "normalized_shape", "weight", "eps", "p")}
    found |= {"gate": draw(r, *d["input"].shape, dtype=d["input"].dtype), "norm_before_gate": r.random() < 0.5}
    found["groups"] = r.choice([g for g in (1, 2, 3) if n % g == 0])
    return found | ({"dy": draw(r, *d["input"].shape, dtype=d["input"].dtype)} if gradient else {})


def of_quantized(r: random.Random) -> dict[str, Any]:
    d = common(r)
    found = {k: d[k] for k in ("input", "normalized_shape", "weight", "eps", "p")}
    return found | {"dtype": r.choice([torch.int8, torch.float8_e4m3fn])}


def of_quantized_sum(r: random.Random) -> dict[str, Any]:
    d = of_quantized(r)
    return d | {"residual": draw(r, *d["input"].shape, dtype=d["input"].dtype)}


def of_numpy(r: random.Random, norm: str, *more: str) -> dict[str, Any]:
    shape, n = sizes(r)
    dtype = r.choice(ARRAYS)
    generator = np.random.default_rng(r.randrange(1 << 30))

    def make(*of: int, dtype: np.dtype = dtype) -> np.ndarray:
        return generator.standard_normal(math.prod(of) + 16).astype(dtype)[8 : 8 + math.prod(of)].reshape(of)

    d = {"x": make(*shape), "axis": tuple(range(-len(n), 0)) if len(n) > 1 else -1, "eps": r.choice([0.1, 0.25])}
    d["weight"] = None if r.random() < 0.3 else make(*n, dtype=r.choice(ARRAYS))
    if "dy" in more:
        d["bias"] = r.random() < 0.5
    else:
        d["bias"] = None if r.random() < 0.3 else make(*n, dtype=r.choice(ARRAYS))
    if norm == "rms":
        d |= {"p": r.choice([1.0, 0.5]), "zero_centered": r.random() < 0.3}
    return d | {name: make(*shape) for name in more}


def of_numpy_quantized(r: random.Random, *more: str) -> dict[str, Any]:
    d = of_numpy(r, "rms", *more)
    found = {k: d[k] for k in ("x", "axis", "eps", "weight", "p", *more)}
    return found | {"dtype": r.choice([np.int8, "int8", ml_dtypes.float8_e4m3fn])}


# ---- calls ----


def with_gradients(function, dy, **arguments):
    """The gradients of all tensors among the arguments that take part."""
    if dy is None:
        raise TypeError("torch refuses it, except for a result of one element")
    names = [n for n in ("input", "gate", "weight", "bias") if isinstance(arguments.get(n), torch.Tensor)]
    leaves = {n: arguments[n].detach().requires_grad_() for n in names}
    found = torch.autograd.grad(function(**(arguments | leaves)), list(leaves.values()), dy)
    of = dict(zip(names, found, strict=True))
    return [
        of.get(n)
        for n in ("input", "gate", "weight", "bias")
        if n in ("input", "weight", "bias") or "gate" in arguments
    ][:3]


def dequantized(function, **arguments):
    q, scale, *total = function(**arguments)
    assert q.dtype == arguments["dtype"]
    assert scale.dtype == torch.float32
    return [q.double() * scale, *total]


def numpy_dequantized(function, **arguments):
    q, scale, *total = function(**arguments)
    assert scale.dtype == np.float32
    return [q.astype(np.float64) * scale, *total]


def operator(name, **arguments):
    """An operator by its schema's names."""
    return getattr(torch.ops.rmsnorm, name)(**arguments)


def whole_module(cls, input, normalized_shape, eps, **options):
    return cls(normalized_shape, eps, **options)(input)


def of_module(r: random.Random, *names: str) -> dict[str, Any]:
    d = common(r) | {"bias": r.random() < 0.5}
    return {k: d[k] for k in ("input", "normalized_shape", "eps", *names)}


def operator_backward(r: random.Random, norm: str) -> dict[str, Any]:
    d = with_dy(r, norm)
    return (
        d
        | {"wants": [True, d["weight"] is not None, d["bias"] is not None]}
        | ({"plus": None} if norm == "rms" else {})
    )


TARGETS = [
    Target("rms_norm", rt.rms_norm, partial(with_out, norm="rms"), oracles.rms_norm, ("out",)),
    Target("layer_norm", rt.layer_norm, partial(with_out, norm="layer"), oracles.layer_norm, ("out",)),
    Target(
        "rms_norm's gradients", partial(with_gradients, rt.rms_norm), partial(with_dy, norm="rms"), oracles.rms_norm
    ),
    Target(
        "layer_norm's gradients",
        partial(with_gradients, rt.layer_norm),
        partial(with_dy, norm="layer"),
        oracles.layer_norm,
    ),
    Target("add_rms_norm", rt.add_rms_norm, with_residual, oracles.add_rms_norm),
    Target(
        "add_rms_norm in place",
        partial(rt.add_rms_norm, inplace=True),
        with_residual,
        partial(oracles.add_rms_norm, inplace=True),
        ("input", "residual"),
    ),
    Target("rms_norm_gated", rt.rms_norm_gated, of_gated, oracles.gated),
    Target(
        "rms_norm_gated's gradients",
        partial(with_gradients, rt.rms_norm_gated),
        partial(of_gated, gradient=True),
        oracles.gated,
    ),
    Target(
        "rms_norm_quantized",
        partial(dequantized, rt.rms_norm_quantized),
        of_quantized,
        oracles.quantized,
        error=0.07,  # half a step of float8_e4m3fn
    ),
    Target(
        "RMSNorm",
        partial(whole_module, rt.RMSNorm),
        lambda r: of_module(r, "p", "casting", "bias"),
        partial(oracles.module_oracle, "rms"),
    ),
    Target(
        "LayerNorm",
        partial(whole_module, rt.LayerNorm),
        lambda r: of_module(r, "bias"),
        partial(oracles.module_oracle, "layer"),
    ),
    Target(
        "numpy.rms_norm", rn.rms_norm, lambda r: of_numpy(r, "rms", "out"), partial(oracles.numpy_norm, "rms"), ("out",)
    ),
    Target(
        "numpy.layer_norm",
        rn.layer_norm,
        lambda r: of_numpy(r, "layer", "out"),
        partial(oracles.numpy_norm, "layer"),
        ("out",),
    ),
    Target(
        "numpy.add_rms_norm",
        rn.add_rms_norm,
        lambda r: of_numpy(r, "rms", "residual"),
        partial(oracles.numpy_norm, "rms"),
    ),
    Target(
        "numpy.rms_norm_backward",
        rn.rms_norm_backward,
        lambda r: of_numpy(r, "rms", "dy"),
        partial(oracles.numpy_norm, "rms"),
    ),
    Target(
        "numpy.layer_norm_backward",
        rn.layer_norm_backward,
        lambda r: of_numpy(r, "layer", "dy"),
        partial(oracles.numpy_norm, "layer"),
    ),
    Target("ops.rms_norm", partial(operator, "rms_norm"), common, partial(oracles.of_operator, oracles.rms_norm)),
    Target(
        "ops.layer_norm",
        partial(operator, "layer_norm"),
        partial(common, norm="layer"),
        partial(oracles.of_operator, oracles.layer_norm),
    ),
    Target(
        "ops.add_rms_norm",
        partial(operator, "add_rms_norm"),
        with_residual,
        partial(oracles.of_operator, oracles.add_rms_norm),
    ),
    Target(
        "ops.rms_norm_gated", partial(operator, "rms_norm_gated"), of_gated, partial(oracles.of_operator, oracles.gated)
    ),
    Target(
        "ops.rms_norm_backward",
        partial(operator, "rms_norm_backward"),
        partial(operator_backward, norm="rms"),
        partial(oracles.operator_gradients, oracles.rms_norm),
    ),
    Target(
        "ops.layer_norm_backward",
        partial(operator, "layer_norm_backward"),
        partial(operator_backward, norm="layer"),
        partial(oracles.operator_gradients, oracles.layer_norm),
    ),
    Target(
        "add_rms_norm_quantized",
        partial(dequantized, rt.add_rms_norm_quantized),
        of_quantized_sum,
        oracles.quantized_sum,
        error=0.07,
    ),
    Target(
        "numpy.rms_norm_quantized",
        partial(numpy_dequantized, rn.rms_norm_quantized),
        of_numpy_quantized,
        oracles.numpy_quantized,
        error=0.07,
    ),
    Target(
        "numpy.add_rms_norm_quantized",
        partial(numpy_dequantized, rn.add_rms_norm_quantized),
        lambda r: of_numpy_quantized(r, "residual"),
        oracles.numpy_quantized,
        error=0.07,
    ),
]
