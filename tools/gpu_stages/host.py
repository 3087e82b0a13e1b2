"""Stage 4: the host's cost of a small call: many calls without waiting for the device, and replayed from a graph."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch

from gpu_stages import cases
from gpu_stages.serving import fresh_plans, served
from gpu_stages.stage import Item, Setting
from rmsnorm_lab.bench import cuda, gpu_providers, runner, torch_providers
from rmsnorm_lab.bench.cases import Case

CALLS, IN_A_GRAPH = 2000, 20


def items(setting: Setting) -> Iterator[Item]:
    """Liger comes last: its kernels take seconds to compile."""
    for providers in ((torch_providers.Ours(), torch_providers.TorchRMSNorm()), (gpu_providers.Liger(),)):
        for case, provider in product(cases.host(), providers):
            yield f"{case}: {provider.name}", partial(_timed, setting, case, provider)


def _timed(setting: Setting, case: Case, provider: torch_providers.TorchProvider) -> dict[str, Any]:
    if why := provider.missing():
        return {"skipped": why}
    own: dict[Any, Any] = {}
    with fresh_plans(own):
        call = provider.build(case, runner.make_inputs(case)).call
        for _ in range(20):
            call()
        calls = 20 if setting.rehearsal else CALLS
        found = sorted(_host_ns(setting, call, calls) for _ in range(3))
    result: dict[str, Any] = {"host_us": round(found[1] / 1e3, 2)}
    if isinstance(provider, torch_providers.Ours):
        result |= served(setting, own)
    if not setting.rehearsal:
        result["graph_us"] = replayed(case, provider)
    return result


def _host_ns(setting: Setting, call: Callable[[], Any], calls: int) -> float:
    """Nanoseconds a call by the host's clock, up to the last launch."""
    setting.synchronize()
    start = time.perf_counter_ns()
    for _ in range(calls):
        call()
    spent = time.perf_counter_ns() - start
    setting.synchronize()
    return spent / calls


def replayed(case: Case, provider: torch_providers.TorchProvider) -> float | str:
    """Microseconds a call without the host's cost: replayed from a CUDA graph; or why the call cannot be captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(side):  # a backward pass runs on the stream of its forward pass
            call = provider.build(case, runner.make_inputs(case)).call
            call()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            for _ in range(IN_A_GRAPH):
                call()
        torch.cuda.current_stream().wait_stream(side)
        cuda.sample(graph.replay, 3)
        return round(cuda.sample(graph.replay, 50) / IN_A_GRAPH / 1e3, 2)
    except RuntimeError as error:
        return runner.reason(error)
