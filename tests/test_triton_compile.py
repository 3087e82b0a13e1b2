"""The shipped launch choices compiled ahead of time, without a GPU: nothing spills, the gradients' grid is resident.

Here a sample that has every choice of every dtype on one chip and the heaviest on the others;
``python -m rmsnorm.torch.triton.aot`` compiles all of them for all (1328 kernels) and prints docs/gpu.md's table.
"""

import re
from dataclasses import replace

import pytest
import torch

triton = pytest.importorskip("triton", reason="the kernels are Triton's (pip install triton)")
if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET is set: nothing is compiled", allow_module_level=True)

from rmsnorm.torch.triton import aot, choices
from rmsnorm.torch.triton.aot import Variant

BF16, F32, F64 = aot.DTYPES


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


SAMPLE = [
    ("sm_90", Variant("rms_norm", 128, BF16)),
    ("sm_90", Variant("rms_norm", 1024, BF16)),
    ("sm_90", Variant("rms_norm", 16384, F32)),
    ("sm_90", Variant("rms_norm", 131072, BF16)),
    ("sm_90", Variant("layer_norm", 16384, BF16)),
    ("sm_90", Variant("layer_norm", 4096, F64)),
    ("sm_90", Variant("rms_norm backward", 16384, BF16)),
    ("sm_90", Variant("rms_norm backward", 64, F32)),
    ("sm_90", Variant("add_rms_norm backward", 8192, BF16)),
    ("sm_90", Variant("add_rms_norm backward", 16384, BF16, torch.bfloat16)),
    ("sm_90", Variant("rms_norm backward", 16384, F32)),
    ("sm_90", Variant("layer_norm backward", 8192, BF16)),
    ("sm_90", Variant("layer_norm backward", 131072, F32)),
    ("sm_80", Variant("rms_norm backward", 16384, BF16)),
    ("sm_100", Variant("rms_norm backward", 16384, BF16)),
    ("sm_100", Variant("layer_norm backward", 512, F32)),
    ("gfx942", Variant("rms_norm", 4096, BF16)),
    ("gfx942", Variant("rms_norm backward", 16384, BF16)),
    ("sm_90", Variant("rms_norm_gated", 8192, BF16)),
    ("sm_90", Variant("rms_norm_gated", 128, F32, heads=True, levels=2)),
    ("sm_90", Variant("rms_norm_gated backward", 4096, BF16)),
    ("sm_90", Variant("rms_norm_gated, norm first, backward", 8192, BF16)),
    ("sm_80", Variant("rms_norm_gated, norm first, backward", 128, F32, heads=True, levels=3)),
    ("sm_100", Variant("rms_norm_gated backward", 2048, F64)),
    ("sm_100", Variant("rms_norm_gated", 2048, F64)),
    ("sm_90", Variant("rms_norm_quantized to int8", 4096, BF16)),
    ("sm_80", Variant("rms_norm_quantized to float8", 16384, BF16)),
    ("sm_90", Variant("rms_norm_quantized to float8", 131072, F32)),
    ("gfx942", Variant("rms_norm_quantized to float8", 4096, BF16)),
    ("sm_90", Variant("rms_norm", 128, BF16, k=8, heads=True, levels=3)),
    ("sm_90", Variant("rms_norm backward", 128, BF16, k=8, heads=True, levels=3)),
]


@pytest.mark.parametrize(("target", "variant"), SAMPLE, ids=lambda value: str(value))
def test_no_spills(target, variant):
    found = aot.counts(variant, aot.TARGETS[target])
    assert found.spilled == 0, found
    choice = variant.choice(aot.TARGETS[target].warp_size)
    if choice.programs and target != "gfx942":  # there registers belong to a quarter of a unit
        threads = choice.programs * choice.warps * 32
        assert threads * -(-found.registers // 8) * 8 <= choices.REGISTERS, found


def test_a_spill_would_be_seen(monkeypatch):
    tight = replace(choices.backward(16384, 2), registers=64)
    monkeypatch.setattr(choices, "backward", lambda *a: tight)
    assert aot.counts(Variant("rms_norm backward", 16384, BF16), aot.TARGETS["sm_90"]).spilled > 0


def accesses(n, dtype=BF16, **more):
    kernel, _ = aot.compiled(Variant("rms_norm", n, dtype, dtype, **more), aot.TARGETS["sm_90"])
    return re.findall(r"ld\.global[^ ]*?((?:\.v\d)?\.b\d+)", kernel.asm["ptx"])


@pytest.mark.parametrize(("n", "widest"), [(1024, ".v4.b32"), (1000, ".v4.b32"), (1004, ".v2.b32"), (1002, ".b32")])
def test_accesses_are_as_wide_as_rows_allow(n, widest):
    """128 bits wherever rows begin at multiples of 16 bytes, n being a multiple of 8 then, not of 16."""
    assert set(accesses(n)) == {widest}


def test_the_number_of_rows_is_no_constant():
    ptx = aot.compiled(Variant("rms_norm", 1024, BF16), aot.TARGETS["sm_90"])[0].asm["ptx"]
    parameters = re.findall(r"\.param \.(\w+)", ptx.split(")")[0])
    assert parameters.count("u64") + parameters.count("b64") >= 18  # six addresses, twelve strides
    assert parameters.count("u32") + parameters.count("b32") == 4
