"""Other libraries' kernels for CUDA tensors, if they are installed."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from rmsnorm_lab.bench.cases import EPS, Case
from rmsnorm_lab.bench.oracle import Inputs
from rmsnorm_lab.bench.torch_providers import TorchProvider


class GPUProvider(TorchProvider):
    """A library with RMSNorm, and possibly LayerNorm and RMSNorm fused with an addition."""

    devices: ClassVar[tuple[str, ...]] = ("cuda",)
    serves: ClassVar[tuple[str, ...]] = ("rms_norm", "add_rms_norm")

    def refuses(self, case: Case) -> str | None:
        if case.op not in self.serves:
            return f"does not compute {case.op}"
        return None if case.p == 1 else "computes no RMSNorm with p < 1"


class Liger(GPUProvider):
    name = "liger"
    summary = "liger-kernel, which rounds once, as this project does (casting_mode gemma)"
    needs = ("liger_kernel",)
    serves = ("rms_norm", "layer_norm", "add_rms_norm")

    def forward(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        from liger_kernel.transformers import functional as liger

        x, weight = inputs["x"], inputs["weight"]
        if case.op == "layer_norm":
            return partial(liger.liger_layer_norm, x, weight, inputs["bias"], EPS)
        how = {"eps": EPS, "offset": 0.0, "casting_mode": "gemma", "in_place": False}
        if case.op == "add_rms_norm":
            return partial(liger.liger_fused_add_rms_norm, x, inputs["residual"], weight, **how)
        return partial(liger.liger_rms_norm, x, weight, **how)


class Quack(GPUProvider):
    name = "quack"
    summary = "quack-kernels (CuTe DSL)"
    needs = ("quack",)

    def forward(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        from quack import rmsnorm

        if case.op == "add_rms_norm":
            return partial(rmsnorm, inputs["x"], inputs["weight"], residual=inputs["residual"], eps=EPS, prenorm=True)
        return partial(rmsnorm, inputs["x"], inputs["weight"], eps=EPS)


class FlashAttention(GPUProvider):
    name = "flash-attention"
    summary = "flash-attn's Triton layer_norm"
    needs = ("flash_attn",)
    serves = ("rms_norm", "layer_norm", "add_rms_norm")

    def forward(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        from flash_attn.ops.triton.layer_norm import layer_norm_fn, rms_norm_fn

        x, weight = inputs["x"], inputs["weight"]
        if case.op == "layer_norm":
            return partial(layer_norm_fn, x, weight, inputs["bias"], eps=EPS)
        if case.op == "add_rms_norm":
            return partial(rms_norm_fn, x, weight, None, residual=inputs["residual"], eps=EPS, prenorm=True)
        return partial(rms_norm_fn, x, weight, None, eps=EPS)


class Apex(GPUProvider):
    name = "apex"
    summary = "NVIDIA apex, fused_rms_norm_affine and fused_layer_norm_affine"
    needs = ("apex",)
    serves = ("rms_norm", "layer_norm")

    def forward(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        from apex.normalization import fused_layer_norm as apex

        x, weight, shape = inputs["x"], inputs["weight"], (case.n,)
        if case.op == "layer_norm":
            return partial(apex.fused_layer_norm_affine, x, weight, inputs["bias"], shape, EPS)
        return partial(apex.fused_rms_norm_affine, x, weight, shape, EPS)


def providers() -> list[GPUProvider]:
    return [Liger(), Quack(), FlashAttention(), Apex()]
