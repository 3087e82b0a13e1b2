"""Launches through Triton's own driver and launcher, whose libcuda records them (recording_driver.c).

No interpreter shows what a launch hands over: each version of Triton compiles a launcher in C, and launch.py calls it
without Triton's binder. Run in a process of its own, with any Triton: ``main(folder of the recording libcuda)``.
"""

import ctypes
import re
from unittest import mock

import torch
import triton

import host_path
from rmsnorm.torch import add_rms_norm, layer_norm, rms_norm, rms_norm_gated, rms_norm_quantized
from rmsnorm.torch.norm import eager
from rmsnorm.torch.triton import choices, gated, launch, plans, quantized

MOST = 64
STREAM, DEVICE = 0x5150, 0
BF16 = torch.bfloat16


class Recorded(ctypes.Structure):
    _fields_ = (
        ("count", ctypes.c_int),
        ("sizes", ctypes.c_int * MOST),
        ("parameters", ctypes.c_ulonglong * MOST),
        ("grid", ctypes.c_uint * 3),
        ("threads", ctypes.c_uint),
        ("shared", ctypes.c_uint),
        ("function", ctypes.c_ulonglong),
        ("stream", ctypes.c_ulonglong),
        ("launches", ctypes.c_int),
        ("name", ctypes.c_char * 256),
        ("handle", ctypes.c_ulonglong),
    )


def parameter_sizes(source, ptx: str) -> list[int]:
    """Of a kernel's parameters in bytes, and of two for scratch memory; the signature and the PTX must agree."""
    kinds = [kind for kind in source.signature.values() if kind != "constexpr"]
    sizes = [4 if kind == "i32" else 8 for kind in kinds] + [8, 8]
    declared = [int(bits) // 8 for bits in re.findall(r"\.param \.[bu](32|64)", ptx.split(")")[0])]
    assert declared == sizes, (declared, sizes)
    return sizes


def checked(real, recorded: Recorded, launched: list[str]):
    """launch.launcher, each of whose launches is compared with what the driver gets."""

    def launcher(kernel, pointers, wide, constants, choice, device):
        source, target = launch.source(kernel, pointers, wide, constants), launch.target(DEVICE)
        compiled = triton.compile(source, target=target, options=launch.options(choice, constants, target))
        sizes = parameter_sizes(source, compiled.asm["ptx"])
        run = real(kernel, pointers, wide, constants, choice, DEVICE)
        assert recorded.name.decode() == kernel.__name__
        handle = recorded.handle

        def go(x, y, tensors, addresses, integers):
            recorded.count, before = len(sizes), recorded.launches
            recorded.sizes[: len(sizes)] = sizes
            run(x, y, tensors, addresses, integers)
            assert recorded.launches == before + 1
            given = [value % 2 ** (8 * size) for value, size in zip((*addresses, *integers, 0, 0), sizes, strict=True)]
            assert recorded.parameters[: len(sizes)] == given, kernel.__name__
            assert list(recorded.grid) == [x, y, 1]
            assert recorded.threads == target.warp_size * choice.warps
            assert recorded.shared == compiled.metadata.shared
            assert (recorded.stream, recorded.function) == (STREAM, handle)
            launched.append(kernel.__name__)

        return go

    return launcher


def every_kernel() -> None:
    """The public functions, so that each kernel is launched at least once, in small and in long rows."""

    def step(function, *shapes, dtype=BF16):
        leaves = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
        outputs = function(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.autograd.grad(outputs, leaves, [torch.randn_like(y) for y in outputs])

    n, long = (64,), (32768,)
    step(lambda x, w: rms_norm(x.transpose(0, 1), n, w), (3, 5, 64), (3, 64), dtype=torch.float32)
    step(lambda x, w, b: layer_norm(x, long, w, b), (3, *long), long, long)
    step(lambda x, r, w: add_rms_norm(x, r, long, w, p=0.01), (3, *long), (3, *long), long)
    step(lambda x, z, w: rms_norm_gated(x, z, n, w), (9, 64), (9, 64), n)
    for width in (64, 32768):
        rms_norm_quantized(torch.randn(3, width), (width,))
    for width, kind in ((64, choices.persistent), (2880, choices.parts)):
        plans.plans.clear()
        choice = kind(width, BF16.itemsize, True, 32)
        with mock.patch.object(choices, "forward", return_value=choice):
            rms_norm(torch.randn(5, width, dtype=BF16), (width,))


def main(folder: str) -> None:
    recorded = Recorded.in_dll(ctypes.CDLL(f"{folder}/libcuda.so.1"), "recorded")
    torch._C._cuda_getCurrentRawStream = lambda device: STREAM
    torch.cuda.is_current_stream_capturing = torch.cuda.is_initialized = lambda: False
    torch.cuda.current_device, torch.cuda.is_available = (lambda: DEVICE), (lambda: True)
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    from triton.backends.nvidia.driver import CudaDriver

    triton.runtime.driver.set_active(CudaDriver())
    real, launched = launch.launcher.__wrapped__, []
    target = launch.target(DEVICE)
    host_path.take_the_way_of_cuda(eager.nodes)
    launch.target = lambda device: target
    gated.call = quantized.call = host_path.norms.call
    launch.launcher = checked(real, recorded, launched)
    every_kernel()
    print(f"Triton {triton.__version__}:", *sorted(set(launched)))
