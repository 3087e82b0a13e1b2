"""Random calls in the way of CUDA tensors: whatever finds a plan finds the one that would be made for its tensors.

A key that leaves something out hands a call another call's launches: wrong results, or writes beyond a tensor's end.
Nothing is computed, so that thousands of calls take seconds. Run in a process of its own: ``main(seed, calls)``.
"""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import host_path
from rmsnorm.torch import add_rms_norm, layer_norm, rms_norm, rms_norm_gated, rms_norm_quantized
from rmsnorm.torch.norm import eager
from rmsnorm.torch.triton import gated, launch, norms, plans, quantized

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def launches_of(plan, tensors, addresses) -> list:
    """What the plan launches: kernels with their constants, grids and integers."""
    LAUNCHED.clear()
    plan(tensors, addresses)
    return LAUNCHED.copy()


LAUNCHED: list = []
found_again = 0


def launcher(*how: object):
    def run(x: int, y: int, tensors: object, addresses: object, integers: object) -> None:
        LAUNCHED.append((how, x, y, tuple(integers)))

    return run


def call(make, variant, tensors, shape, eps, p, flags) -> bool:
    """plans.call, and if it found a plan the one that is made for these very tensors must launch the same."""
    global found_again
    known = len(plans.plans)
    LAUNCHED.clear()
    if not plans._serve(make, variant, tensors, shape, eps, p, flags):
        return False
    served = LAUNCHED.copy()
    if len(plans.plans) == known:
        found_again += 1
        _, addresses, low = plans._describe(tensors)
        shape = tuple(shape) if isinstance(shape, list) else shape
        fresh = make(variant, tensors, shape, eps, p, flags, low)
        assert served == launches_of(fresh, tensors, addresses), (make.__name__, [describe(t) for t in tensors])
    return True


def describe(t: Tensor | None) -> object:
    return t if t is None else (t.dtype, tuple(t.shape), t.stride())


class Calls:
    """Calls that a list of numbers between 0 and 1 decides, one decision each; the same list makes the same call."""

    def __init__(self) -> None:
        self.memory = {dtype: torch.zeros(1 << 19, dtype=dtype) for dtype in DTYPES}
        self.used = 0

    def tensor(self, dtype: torch.dtype, *shape: int) -> Tensor:
        """In one of some layouts and alignments, in memory that no other tensor of the call has."""
        rows = shape[:-1]
        order = self.pick([list(range(len(rows))), list(range(len(rows)))[::-1]])
        extent = shape[-1] + self.pick([0, 0, 8, 3])
        strides, step = [0] * len(rows), extent
        for d in reversed(order):
            strides[d], step = step, step * rows[d]
        start = self.used + self.pick([0, 0, 0, 1, 4])
        self.used = -(-(start + step) // 16) * 16
        return self.memory[dtype].as_strided(shape, (*strides, 1), start)

    def pick(self, options: Sequence[Any]) -> Any:
        self.place += 1
        return options[int(self.decisions[self.place - 1] * len(options))]

    def maybe(self, share: float) -> bool:
        return self.pick(range(100)) < 100 * share

    def parameter(self, *shape: int) -> Tensor | None:
        if self.maybe(0.25):
            return None
        return torch.zeros(shape, dtype=self.pick(DTYPES)).requires_grad_(self.maybe(0.6))

    def one(self, decisions: list[float]) -> None:
        self.decisions, self.place, self.used = decisions, 0, 0
        pick, maybe = self.pick, self.maybe
        n, dtype, rows = pick([8, 8, 12, 20000]), pick(DTYPES), pick([(2, 3), (3, 2), (6, 1)])
        x, other = (self.tensor(dtype, *rows, n).requires_grad_(maybe(0.6)) for _ in range(2))
        shape = (rows[1], n) if maybe(0.3) else (n,)
        weight, bias = self.parameter(*shape), self.parameter(*shape)
        how = {"eps": pick([1e-5, 1e-3]), "p": pick([1.0, 0.5, 0.01])}
        more = how | {"zero_centered": maybe(0.3), "casting": pick(["once", "once", "llama"])}
        kind = pick(["rms", "rms", "layer", "add", "gated", "quantized", "into"])
        outputs: object = ()
        if kind == "rms":
            outputs = rms_norm(x, n, weight, bias=bias, **more)
        elif kind == "layer":
            outputs = layer_norm(x, n, weight, bias, how["eps"])
        elif kind == "add":
            outputs = add_rms_norm(x, other, n, weight, bias=bias, **more)
        elif kind == "gated" and (weight is None or weight.dim() == 1):
            groups = pick([1, 2])
            outputs = rms_norm_gated(x, other, n, weight, **how, groups=groups, norm_before_gate=maybe(0.5))
        elif kind == "quantized":
            with torch.no_grad():
                rms_norm_quantized(x, n, weight, **how, dtype=pick([torch.int8, torch.float8_e4m3fn]))
        elif kind == "into":
            with torch.no_grad():
                rms_norm(x, n, weight, bias=bias, **how, out=(x if maybe(0.3) else other).detach())
        outputs = [y for y in (outputs if isinstance(outputs, tuple) else (outputs,)) if isinstance(y, Tensor)]
        outputs = [y for y in outputs if y.requires_grad and maybe(0.8)]
        if outputs:
            torch.autograd.backward(outputs, [torch.zeros_like(y) for y in outputs])
        for t in (x, other, weight, bias):
            if t is not None:
                t.grad = None


DECISIONS = 60  # a call takes fewer


def main(seed: int, calls: int) -> None:
    """Each call is repeated with every decision made again, one at a time."""
    torch.set_num_threads(1)
    host_path.take_the_way_of_cuda(eager.nodes)
    norms.call = gated.call = quantized.call = call
    launch.launcher = launcher
    made, drawn = Calls(), random.Random(seed)
    for _ in range(calls):
        decisions = [drawn.random() for _ in range(DECISIONS)]
        made.one(decisions)
        for place in range(made.place):
            made.one([*decisions[:place], drawn.random(), *decisions[place + 1 :]])
    print(len(plans.plans), found_again)
