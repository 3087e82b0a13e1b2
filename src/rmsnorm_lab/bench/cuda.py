"""Measuring on a CUDA device: its description, its clock, and inputs that are no longer in its cache."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch

from rmsnorm.timing import Call
from rmsnorm_lab.bench.cases import Case
from rmsnorm_lab.bench.oracle import Inputs
from rmsnorm_lab.errors import UserError

DEVICE = "cuda"
MOST_COPIES = 16


def check() -> None:
    """UserError where there is no device."""
    if not torch.cuda.is_available():
        raise UserError("--device cuda needs a CUDA or ROCm device that torch sees; see `rmsnorm info`")


@dataclass(frozen=True)
class Device:
    """The device as a record names it."""

    gpu: str
    multiprocessors: int
    gpu_memory_gib: float
    l2_mib: float
    cuda: str | None
    """The version of CUDA or ROCm."""


def describe() -> Device:
    """The device that torch uses."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Device(
        gpu=properties.name,
        multiprocessors=properties.multi_processor_count,
        gpu_memory_gib=round(properties.total_memory / 2**30, 1),
        l2_mib=round(properties.L2_cache_size / 2**20, 1),
        cuda=torch.version.cuda or torch.version.hip,
    )


def poison(inputs: Inputs) -> None:
    """Leave NaN in the memory that the next outputs of the inputs' size get, so that unwritten elements are seen."""
    full = [torch.full_like(inputs["x"], torch.nan) for _ in range(4)]
    small = [torch.full_like(inputs["weight"], torch.nan) for _ in range(2)]
    del full, small


def copies(case: Case, l2_bytes: int) -> int:
    """How many sets of inputs take turns, so that none is in the L2 cache when it is read again."""
    return max(1, min(MOST_COPIES, -(-2 * l2_bytes // case.bytes_moved)))


def in_turn(calls: Sequence[Call]) -> Call:
    """One call of the next of ``calls`` at each call. As many results are kept: else each call would write where the
    last one has written, and find that in the cache."""
    if len(calls) == 1:
        return calls[0]
    following, kept = cycle(calls).__next__, deque[Any](maxlen=len(calls))
    return lambda: kept.append(following()())


def sample(call: Callable[[], Any], repeats: int) -> float:
    """Nanoseconds a call by the device's own clock, over ``repeats`` consecutive calls.

    The device's waiting for the host counts: small cases measure the host's overhead.
    """
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e6 / repeats
