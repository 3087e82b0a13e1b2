"""rms_norm_rotary as fuzz_arguments.py calls it, and what it must give."""

import random
from functools import partial
from typing import Any

import numpy as np
import torch

from fuzz_oracles import gradient, of_operator, promoted
from fuzz_reading import FLOATS, NO, eps_of, flag, must, values
from fuzz_targets import Target, draw, operator
from rmsnorm import reference
from rmsnorm import torch as rt


def of_rotary(r: random.Random, gradients: bool = False) -> dict[str, Any]:
    dtype, n = r.choice(FLOATS), r.choice([2, 5, 16, 33, 64, 130, 0])
    outer, positions = r.choice([(), (1,), (3,), (2, 2), (0,)]), r.choice([1, 2, 5, 40, 0])
    width = 2 * r.randrange(n // 2 + 1)
    before = r.choice([outer, (1,) * len(outer), ()])

    def rows(heads: int) -> torch.Tensor:
        return draw(r, *outer, positions, heads, n, dtype=dtype).transpose(-3, -2)

    heads = {"q": r.choice([1, 2, 6]), "k": r.choice([1, 3])}
    d = {name: rows(count) for name, count in heads.items()}
    angles = r.choice([dtype, *FLOATS])
    d |= {name: draw(r, *before, positions, width, dtype=angles) for name in ("cos", "sin")}
    for name, count in heads.items():
        shape = (n,) if r.random() < 0.6 else (count, n)
        d[f"{name}_weight"] = None if r.random() < 0.3 else draw(r, *shape, dtype=r.choice([dtype, *FLOATS]))
    d |= {"eps": r.choice([0.1, 0.25]), "zero_centered": r.random() < 0.3, "casting": r.choice(["once", "llama"])}
    if gradients:
        results = {name: promoted(d[name], d["casting"], *_others(d, name)) for name in heads}
        d |= {f"dy_{name}": draw(r, *d[name].shape, dtype=of) for name, of in results.items()}
    return d


def _others(d: dict[str, Any], name: str) -> tuple:
    return d[f"{name}_weight"], d["cos"], d["sin"]


def oracle(eps, zero_centered, casting, dy_q=NO, dy_k=NO, **tensors):
    q, k, cos, sin = (values(tensors[name]) for name in ("q", "k", "cos", "sin"))
    must(q.ndim >= 3 and k.ndim == q.ndim and (*q.shape[:-3], *q.shape[-2:]) == (*k.shape[:-3], *k.shape[-2:]))
    must(cos.ndim and cos.shape == sin.shape and cos.shape[-1] % 2 == 0 and cos.shape[-1] <= q.shape[-1])
    outer, given = (*q.shape[:-3], q.shape[-2]), cos.shape[:-1]
    must(len(given) <= len(outer))
    must(all(e in (1, o) for e, o in zip(reversed(given), reversed(outer), strict=False)))
    turn = [np.broadcast_to(t, (*outer, t.shape[-1]))[..., None, :] for t in (cos, sin)]
    results, gradients = [], []
    for name, x, dy in (("q", q, dy_q), ("k", k, dy_k)):
        n, weight = x.shape[-1], tensors[f"{name}_weight"]
        g = None if weight is None else values(weight)
        must(g is None or g.shape in ((n,), (x.shape[-3], n)))
        how = {"eps": eps_of(eps, tensors[name].dtype), "zero_centered": flag(zero_centered)}
        dtype = promoted(tensors[name], casting, weight, tensors["cos"], tensors["sin"])
        u = None if dy is NO else gradient(dy, dtype)
        must(u is None or u.shape == x.shape)
        if n == 0:
            results.append(x)
            gradients.append((x, g))
            continue
        a = np.swapaxes(x, -3, -2)
        results.append(np.swapaxes(reference.rms_norm_rotary(a, *turn, g, **how), -3, -2))
        if u is not None:
            da, dg = reference.rms_norm_rotary_vjp(np.swapaxes(u, -3, -2), a, *turn, g, **how)
            gradients.append((np.swapaxes(da, -3, -2), None if g is None else dg))
    return results if dy_q is NO else [t for pair in gradients for t in pair]


def with_gradients(dy_q, dy_k, **arguments):
    """The gradients of query, gain of the query, key, gain of the key."""
    if dy_q is None or dy_k is None:
        raise TypeError("torch refuses it, except for a result of one element")
    names = [n for n in ("q", "q_weight", "k", "k_weight") if isinstance(arguments.get(n), torch.Tensor)]
    leaves = {n: arguments[n].detach().requires_grad_() for n in names}
    found = torch.autograd.grad(rt.rms_norm_rotary(**arguments | leaves), list(leaves.values()), (dy_q, dy_k))
    of = dict(zip(names, found, strict=True))
    return [of.get(n) for n in ("q", "q_weight", "k", "k_weight")]


TARGETS = [
    Target("rms_norm_rotary", rt.rms_norm_rotary, of_rotary, oracle),
    Target("rms_norm_rotary's gradients", with_gradients, partial(of_rotary, gradients=True), oracle),
    Target("ops.rms_norm_rotary", partial(operator, "rms_norm_rotary"), of_rotary, partial(of_operator, oracle)),
]
