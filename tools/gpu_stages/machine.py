"""Stage 0: the machine, its limits, and whether one kernel runs at all."""

import os
import time
from collections.abc import Iterator
from importlib import metadata, util
from typing import Any

import torch

from gpu_stages.stage import Item, Setting
from rmsnorm_lab import machine
from rmsnorm_lab.bench import cuda


def items(setting: Setting) -> Iterator[Item]:
    yield "versions", _versions
    yield "copy of 256 MiB", lambda: _copy(setting, setting.elements * 2)
    yield "copy of 4 GiB", lambda: _copy(setting, setting.elements * 32)
    yield "an empty launch", lambda: _launch(setting)
    yield "one kernel", lambda: _one_kernel(setting)


def _versions() -> dict[str, Any]:
    from rmsnorm import native
    from rmsnorm.torch.norm.eager import why_no_nodes

    packages = ("torch", "triton", "numpy", "liger-kernel", "quack-kernels", "pytest")
    names = {d.metadata["Name"] for d in metadata.distributions()}
    return {
        "machine": vars(machine.describe()) | vars(cuda.describe()),
        "packages": {name: metadata.version(name) for name in packages if name in names},
        "liger_kernel": util.find_spec("liger_kernel") is not None,
        "cpus": os.cpu_count(),
        "why_no_native": native.missing,
        "why_no_nodes": why_no_nodes,  # without them the host stage times Python's way alone
    }


def _copy(setting: Setting, size: int) -> dict[str, Any]:
    """Bytes read and written per second by y.copy_(x): the upper limit of every kernel here."""
    x = torch.empty(size // 2, dtype=torch.bfloat16, device=cuda.DEVICE).normal_()
    y = torch.empty_like(x)
    cuda.sample(lambda: y.copy_(x), 3)
    best = min(cuda.sample(lambda: y.copy_(x), 20) for _ in range(3))
    return {"gb_a_second": round(2 * size / best, 1)}


def _launch(setting: Setting) -> dict[str, Any]:
    """The cost of a kernel that does nothing, by the device's clock and by the host's."""
    x = torch.zeros(1, device=cuda.DEVICE)
    cuda.sample(x.zero_, 100)
    start = time.perf_counter_ns()
    for _ in range(1000):
        x.zero_()
    host = (time.perf_counter_ns() - start) / 1000
    setting.synchronize()
    return {"host_us": round(host / 1e3, 2), "device_us": round(cuda.sample(x.zero_, 1000) / 1e3, 2)}


def _one_kernel(setting: Setting) -> dict[str, Any]:
    """The first launch of this project's kernels, or the reason why they do not run."""
    from rmsnorm.torch import dispatch, rms_norm

    x = torch.randn(64, 4096, device=cuda.DEVICE, dtype=torch.bfloat16)
    y = rms_norm(x, (4096,))
    wide = x.double()
    off = (y - wide * torch.rsqrt(wide.square().mean(-1, keepdim=True))).abs().max().item()
    return {
        "off": off,
        "why_no_kernels": dispatch.why_no_triton,
        "served": setting.rehearsal or not dispatch.why_no_triton,
    }
