"""Microseconds of a processor that the host's half of a small CUDA call takes, without the launches: no GPU is needed.

CPU tensors take the way of CUDA tensors, with a launcher that does nothing. Beside it, what torch alone takes for an
``autograd.Function`` that allocates its results, and for ``F.layer_norm`` of the same tensors with its CPU kernel.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import torch
from triton.backends.compiler import GPUTarget

from rmsnorm.torch import add_rms_norm, dispatch, functional, operation, rms_norm
from rmsnorm.torch.norm import eager
from rmsnorm.torch.triton import functions, launch, norms, plans

N = 64


def take_the_way_of_cuda(nodes: Any) -> None:
    """From now on CPU tensors do; with the C++ calls if ``nodes`` are given."""

    def call(make: Any, variant: bool, tensors: Any, *how: Any) -> bool:
        x = tensors[0]
        if x.is_cuda or plans._interpreters() is not None or x.get_device() >= 0:  # as plans.call asks
            raise AssertionError("these are tensors of a CPU")
        return plans._serve(make, variant, tensors, *how)

    norms.call = call
    launch.launcher = lambda *_: lambda *_: None  # type: ignore[assignment]
    launch.target = lambda _: GPUTarget("cuda", 90, 32)  # type: ignore[assignment]
    launch.multiprocessors = lambda _: 132  # type: ignore[assignment]
    launch.shared_memory = lambda _: launch.SHARED  # type: ignore[assignment]
    functional.eager_way = operation.eager_way = dispatch._cuda_way
    operation.kernels_of = eager.kernels_of = lambda _: functions
    dispatch.why_no_triton = None
    functional.nodes = nodes
    plans.plans.clear()
    plans.describe = nodes.describe if nodes else plans._describe
    if nodes:
        nodes.serve("cpu", norms.norm, norms.norm_backward)


def microseconds(function: Callable[[], object], calls: int = 300, samples: int = 60) -> float:
    """The thread's processor time a call, the best sample's: other processes do not count."""
    best = float("inf")
    for _ in range(samples):
        start = time.thread_time_ns()
        for _ in range(calls):
            function()
        best = min(best, (time.thread_time_ns() - start) / calls)
    return round(best / 1e3, 1)


class Empty(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*tensors)
        return torch.empty_like(tensors[0])

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:  # type: ignore[override]
        return tuple(map(torch.empty_like, ctx.saved_tensors))


def main() -> None:
    torch.set_num_threads(1)
    x, r, dy = (torch.randn(1, N, dtype=torch.bfloat16) for _ in range(3))
    w = torch.ones(N, dtype=torch.bfloat16)
    leaves = x.clone().requires_grad_(), w.clone().requires_grad_()

    def with_backward(function: Callable[..., torch.Tensor]) -> Callable[[], object]:
        def call() -> None:
            function(*leaves).backward(dy)
            for leaf in leaves:
                leaf.grad = None

        return call

    found = {
        "empty autograd.Function, forward and backward": microseconds(with_backward(Empty.apply)),
        "F.layer_norm on a CPU, forward and backward": microseconds(
            with_backward(lambda x, w: torch.nn.functional.layer_norm(x, (N,), w))
        ),
    }
    for name, nodes in {"in Python": None, "in C++": eager.nodes}.items():
        if nodes is None and name == "in C++":
            continue
        take_the_way_of_cuda(nodes)
        found[f"rms_norm {name}"] = microseconds(lambda: rms_norm(x, (N,), w))
        found[f"add_rms_norm {name}"] = microseconds(lambda: add_rms_norm(x, r, (N,), w))
        found[f"rms_norm {name}, forward and backward"] = microseconds(with_backward(lambda x, w: rms_norm(x, (N,), w)))
    print(json.dumps({"unit": "µs", "n": N, "torch": torch.__version__} | found, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
