"""What compiles the shipped launch choices ahead of time, without a GPU, sees faults; and what some kernels read.

`make triton-sample` compiles a sample that has every choice of every kernel and dtype once, shared between two Tritons,
each of which compiles every kernel; `make triton` compiles all of them for all chips by both.
"""

import hashlib
import os
import re
import shutil
from dataclasses import replace

import pytest
import torch

triton = pytest.importorskip("triton", reason="the kernels are Triton's (pip install triton)")
if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET is set: nothing is compiled", allow_module_level=True)

import compile_kernels
import kernel_variants
from compile_kernels import BF16
from kernel_variants import Variant
from rmsnorm.torch.triton import choices, launch
from tritons import OLDEST, ROOT

SOURCES = sorted((ROOT / "src" / "rmsnorm" / "torch" / "triton").glob("*.py"))
KEPT = ROOT / "build" / "triton-cache"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch):
    """The folder of what these sources were compiled to, which the next run does not compile again.

    Triton finds a kernel there by its source, arguments, target, options and Triton's own version. That of other
    sources is removed: it takes 100 MB.
    """
    folder = KEPT / hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES)).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    for other in set(KEPT.iterdir()) - {folder}:
        shutil.rmtree(other, ignore_errors=True)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    return folder


def test_a_spill_would_be_seen(monkeypatch):
    tight = replace(choices.backward(16384, 2), registers=64)
    monkeypatch.setattr(choices, "backward", lambda *a: tight)
    assert "spills" in compile_kernels.fault(("sm_90", Variant("rms_norm backward", 16384, BF16)))


def test_programs_that_do_not_fit_would_be_seen(monkeypatch):
    loose = replace(choices.backward(4096, 2), programs=4, registers=None)
    monkeypatch.setattr(choices, "backward", lambda *a: loose)
    assert "resident" in compile_kernels.fault(("sm_90", Variant("rms_norm backward", 4096, BF16)))


def test_each_share_has_every_kernel():
    halves = [compile_kernels.sample()[first::2] for first in (0, 1)]
    names = [{variant.kernel(variant.choice(32)).__name__ for _, variant in half} for half in halves]
    assert names[0] == names[1]


def test_every_choice_is_in_the_sample():
    """Of each kernel and dtype; the operations that share one take turns."""

    def key(variant):
        choice = variant.choice(32)
        length = f"pieces of {choice.block}" if choice.looped else variant.n
        return variant.kernel(choice).__name__, length, variant.dtype

    assert {key(variant) for variant in compile_kernels.variants()} <= {
        key(variant) for _, variant in compile_kernels.sample()
    }


def accesses(n, dtype=BF16, **more):
    kernel, _ = kernel_variants.compiled(Variant("rms_norm", n, dtype, dtype, **more), kernel_variants.TARGETS["sm_90"])
    return re.findall(r"ld\.global[^ ]*?((?:\.v\d)?\.b\d+)", kernel.asm["ptx"])


@pytest.mark.parametrize(("n", "widest"), [(1024, ".v4.b32"), (1000, ".v4.b32"), (1004, ".v2.b32"), (1002, ".b32")])
def test_accesses_are_as_wide_as_rows_allow(n, widest):
    """128 bits wherever rows begin at multiples of 16 bytes, n being a multiple of 8 then, not of 16."""
    assert set(accesses(n)) == {widest}


@pytest.mark.parametrize(
    ("operation", "n", "reads"), [("rms_norm backward", 16384, 8), ("rms_norm_gated backward", 8192, 12)]
)
def test_what_is_read_twice_leaves_the_caches_after_the_second_time(operation, n, reads):
    """x and dy (and the gate), 16 bytes a read by 512 and 256 threads. A first read that pins them displaces others."""
    ptx = kernel_variants.compiled(Variant(operation, n, BF16), kernel_variants.TARGETS["sm_90"])[0].asm["ptx"]
    assert len(re.findall(r"ld\.global\.L1::evict_first\S*\.v4\.b32", ptx)) == reads
    assert "evict_last" not in ptx


def shuffles(variant):
    ptx = kernel_variants.compiled(variant, kernel_variants.TARGETS["sm_90"])[0].asm["ptx"]
    return len(re.findall(r"shfl\.sync", ptx))


@pytest.mark.parametrize(
    ("operation", "n", "dtype"),
    [
        ("rms_norm backward", 128, BF16),
        ("rms_norm backward", 256, BF16),
        ("layer_norm backward", 128, torch.float32),
        ("rms_norm_gated backward", 128, BF16),
    ],
)
def test_copies_ahead_do_not_spread_a_row_over_more_threads(operation, n, dtype, monkeypatch):
    """With 8 rows of 128 elements in a tile, Triton's layout of a copied tile takes five times as many shuffles."""
    name = "gated_backward" if "gated" in operation else "backward"
    choose = getattr(choices, name)
    found = shuffles(Variant(operation, n, dtype))
    monkeypatch.setattr(choices, name, lambda *how: replace(choose(*how), stages=1))
    assert found <= 1.1 * shuffles(Variant(operation, n, dtype))
    if operation == "rms_norm backward" and n == 128:  # that it would be seen
        monkeypatch.setattr(choices, name, lambda *how: replace(choose(*how), rows=8, warps=4))
        assert shuffles(Variant(operation, n, dtype)) > 3 * found


WIDTHS = """
import re, torch
from kernel_variants import TARGETS, Variant, compiled
for n, k in ((131072, 39322), (131072, 1311), (20000, 10001)):
    for operation in ("rms_norm", "rms_norm_quantized to int8"):
        kernel, _ = compiled(Variant(operation, n, torch.bfloat16, torch.bfloat16, k=k), TARGETS["sm_90"])
        print(*re.findall(r"ld\\.global[^ ]*?((?:\\.v\\d)?\\.b\\d+)", kernel.asm["ptx"]))
"""


@pytest.mark.parametrize("version", ["installed", *OLDEST])
def test_a_statistic_of_k_elements_reads_whole_vectors(version, run_python, own_cache):
    """A mask that ends within a vector would cut all of a row's accesses, to 32 bits for even k and 16 for odd."""
    folder = [] if version == "installed" else [OLDEST[version]]
    if not all(path.is_dir() for path in folder):
        pytest.skip(f"Triton {version} is not in {folder[0]}: make {folder[0].relative_to(ROOT)}")
    path = os.pathsep.join(map(str, [*folder, ROOT / "tools"]))
    assert set(run_python(WIDTHS, PYTHONPATH=path, TRITON_CACHE_DIR=str(own_cache)).split()) == {".v4.b32"}


@pytest.mark.parametrize("operation", ["rms_norm", "rms_norm_gated", "rms_norm_quantized to int8"])
def test_rows_that_32_bits_do_not_count_are_numbered_in_64(operation, monkeypatch):
    real = launch.source
    monkeypatch.setattr(launch, "source", lambda kernel, pointers, wide, *rest: real(kernel, pointers, True, *rest))
    variant = next(v for _, v in compile_kernels.sample() if v.operation == operation and v.n <= 1024)
    text = kernel_variants.compiled(variant, kernel_variants.TARGETS["sm_90"])[0].asm["ttir"]
    (program,) = re.findall(r"(%\w+) = tt\.get_program_id x", text)
    (use,) = [line for line in text.splitlines() if re.search(rf"{program}\b", line) and "get_program_id" not in line]
    assert "arith.extsi" in use
    assert "to i64" in use


def test_the_number_of_rows_is_no_constant():
    ptx = kernel_variants.compiled(Variant("rms_norm", 1024, BF16), kernel_variants.TARGETS["sm_90"])[0].asm["ptx"]
    parameters = re.findall(r"\.param \.(\w+)", ptx.split(")")[0])
    assert parameters.count("u64") + parameters.count("b64") >= 18  # six addresses, twelve strides
    assert parameters.count("u32") + parameters.count("b32") == 4
