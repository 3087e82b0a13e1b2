"""The C++ kernels: every instruction-set level, threads that change no bit, levels and settings that do not exist."""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rmsnorm import native
from rmsnorm.torch import add_rms_norm, layer_norm, rms_norm

OTHER_LEVELS = [level for level in native.available_levels() if level != native.level()]


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.skipif(not OTHER_LEVELS, reason="this processor runs one level only")
@pytest.mark.skipif("RMSNORM_ISA" in os.environ, reason="this is already the run of one level")
@pytest.mark.parametrize("level", OTHER_LEVELS)
def test_conformance_of_the_other_levels(level):
    """The best level is tested by the other files; the rest run the kernels' cases in processes of their own."""
    files = sorted(Path(__file__).parents[1].rglob("test_*.py"))
    tests = [path for path in files if "@pytest.mark.every_level" in path.read_text(encoding="utf-8")]
    assert len(tests) >= 7
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rp", "-m", "every_level", *tests],
        env={**os.environ, "RMSNORM_ISA": level},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    for path in tests:
        passed = re.search(rf"^PASSED .*{path.name}::", done.stdout, re.MULTILINE)
        assert passed, f"none of {path.name}\n{done.stdout[-1000:]}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("del module.gated", "has no gated"),
        ("module.norm = module.gated", "takes 10 arguments, and 11 are given"),
        ("del module.RecurrentSteps", "has no RecurrentSteps.forward"),
        ("module.code_definitions += 'x'", "was built with other numbers than those of codes.py"),
    ],
)
def test_modules_older_than_the_python_files_are_one_sentence(run_python, change, message):
    functions = {name for name in dir(native.kernels) if not name.startswith("_") and name[0].islower()}
    assert functions - {"c_api", "code_definitions"} == {name for name in native.FUNCTIONS if "." not in name}
    source = f"""
import importlib
load = importlib.import_module
def older(name):
    module = load(name)
    if name == {native.kernels.__name__!r}:
        {change}
    return module
importlib.import_module = older
import rmsnorm.numpy
"""
    last = run_python(source, status=1).rstrip().splitlines()[-1]
    assert last.startswith(f"ImportError: {native.OLDER}: ")
    assert last.endswith(message)


def test_the_forced_level_is_the_one_loaded():
    assert native.level() in native.available_levels()
    if "RMSNORM_ISA" in os.environ:
        assert native.level() == os.environ["RMSNORM_ISA"]
    else:
        assert native.level() == native.available_levels()[-1]


def test_a_level_that_does_not_exist(run_python):
    message = run_python("import rmsnorm.numpy", status=1, RMSNORM_ISA="x86-64-v9")
    assert "ImportError" in message
    assert "'x86-64-v9'" in message
    for level in native.available_levels():
        assert level in message


@pytest.mark.parametrize("threads", ["0", "-1", "many", "1.5", " "])
def test_a_number_of_threads_that_is_none(run_python, threads):
    message = run_python("import rmsnorm.numpy", status=1, RMSNORM_NUM_THREADS=threads)
    assert "RMSNORM_NUM_THREADS" in message
    assert repr(threads) in message


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="only x86-64 has AVX to keep out")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump (binutils) is not installed")
def test_the_baseline_has_no_avx():
    """Or an older processor would stop at an illegal instruction. That the v3 module has them tests this test."""

    def wide_instructions(module: str) -> list[str]:
        spec = importlib.util.find_spec(f"rmsnorm.native.{module}")
        assert spec is not None
        listing = subprocess.run(["objdump", "-d", spec.origin], capture_output=True, text=True, check=True).stdout
        assert "mulps" in listing, "the kernels are not in there"
        return re.findall(r"%[yz]mm\d+|\tv[a-z0-9]+ +%xmm", listing)

    assert wide_instructions("_baseline") == []
    assert len(wide_instructions("_v3")) > 100


SIZES = [(1, 100_000), (2, 70_001), (300, 1000), (5000, 64), (20_011, 17), (65_537, 3)]


def everything(rows: int, n: int, dtype: torch.dtype) -> dict[str, bytes]:
    """Every result that the kernels give for one size."""
    generator = torch.Generator().manual_seed(rows + n)
    x, dy, residual = (torch.randn(rows, n, generator=generator).to(dtype).requires_grad_() for _ in range(3))
    weight, bias = (torch.randn(n, generator=generator).requires_grad_() for _ in range(2))
    results = {}
    for name, output, inputs in (
        ("rms", rms_norm(x, (n,), weight, 1e-5, bias=bias), (x, weight, bias)),
        ("partial", rms_norm(x, (n,), weight, 1e-5, p=0.1, zero_centered=True), (x, weight)),
        ("layer", layer_norm(x, (n,), weight, bias), (x, weight, bias)),
        ("add", add_rms_norm(x, residual, (n,), weight, 1e-5)[0], (x, residual, weight)),
    ):
        results[name] = bits(output)
        for i, gradient in enumerate(torch.autograd.grad(output, inputs, dy)):
            results[f"{name} d{i}"] = bits(gradient)
    return results


@pytest.mark.every_level
@pytest.mark.parametrize(("rows", "n"), SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads_change_no_bit_in_torch(rows, n, dtype, set_threads):
    set_threads(1)
    alone = everything(rows, n, dtype)
    for threads in (2, 3, 8):
        set_threads(threads)
        assert torch.get_num_threads() == threads
        together = everything(rows, n, dtype)
        assert [name for name in alone if alone[name] != together[name]] == [], f"{threads} threads"


POOL = """
import hashlib
import numpy as np
import rmsnorm.numpy as rn
digest = hashlib.sha256()
for rows, n in ((1, 100_000), (300, 1000), (5000, 64), (20_011, 17)):
    for dtype in (np.float32, np.float64):
        x, dy = np.random.default_rng(rows).standard_normal((2, rows, n)).astype(dtype)
        g = np.random.default_rng(n).standard_normal(n).astype(dtype)
        normed, stream = rn.add_rms_norm(x, dy, g)
        results = [rn.rms_norm(x, g, p=0.3), rn.layer_norm(x, g), normed, stream]
        results += rn.rms_norm_backward(dy, x, g, bias=True) + rn.layer_norm_backward(dy, x, g, bias=True)
        results += rn.add_rms_norm_backward(dy, x, stream, g, bias=True)
        for result in results:
            digest.update(result.tobytes())
print(digest.hexdigest())
"""


@pytest.mark.every_level
def test_threads_change_no_bit_in_numpy(run_python):
    assert len({run_python(POOL, RMSNORM_NUM_THREADS=threads) for threads in ("1", "2", "5")}) == 1


def test_the_pool_starts_when_it_is_first_needed(run_python):
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("no /proc to count threads in")
    source = """
import os
import numpy as np
def threads():
    return len(os.listdir("/proc/self/task"))
before = threads()
import rmsnorm.numpy as rn
rn.rms_norm(np.ones((2, 8), np.float32))
assert threads() == before, "importing, or a small call, started threads"
rn.rms_norm(np.ones((20_000, 512), np.float32))
print(threads() - before)
"""
    assert run_python(source, RMSNORM_NUM_THREADS="1").strip() == "0"
    assert run_python(source, RMSNORM_NUM_THREADS="3").strip() == "2"


@pytest.mark.every_level
@pytest.mark.parametrize("offset", [1, 3, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_any_level_takes_any_alignment(offset, dtype):
    """A storage offset that no vector load likes gives the bits of an aligned tensor, forward and backward."""
    for n in (1, 7, 16, 33, 129, 1000):
        aligned = [torch.randn(5, n).to(dtype) for _ in range(3)]
        shifted = [torch.cat([torch.zeros(offset, dtype=dtype), a.flatten()])[offset:].view(5, n) for a in aligned]
        found = []
        for x, dy, weights in (aligned, shifted):
            x, weight = x.detach().requires_grad_(), weights[0].detach().requires_grad_()
            y = rms_norm(x, (n,), weight, 1e-5)
            found.append([bits(t) for t in (y, *torch.autograd.grad(y, (x, weight), dy))])
        assert found[0] == found[1], n


@pytest.mark.every_level
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sums_are_rounded_once(dtype):
    """dweight is summed in float64 beyond 32 rows. Rounded by way of float32, 1 + half a place + 2^-40 would be 1."""
    place = torch.finfo(dtype).eps
    for sign in (1, -1):
        x = torch.ones(64, 1)  # at eps = 0 x̂ is 1, and so dweight the sum of dy
        dy = torch.zeros(64, 1)
        dy[0], dy[40] = sign * (1 + place / 2), sign * 2.0**-40
        weight = torch.ones(1, dtype=dtype, requires_grad=True)
        (found,) = torch.autograd.grad(rms_norm(x, (1,), weight, 0.0), weight, dy)
        assert found.item() == sign * (1 + place)
        dy[40] *= -1
        (found,) = torch.autograd.grad(rms_norm(x, (1,), weight, 0.0), weight, dy)
        assert found.item() == sign


@pytest.mark.every_level
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_strides_of_parameters_change_no_bit_of_their_gradients(dtype):
    """Contiguous gradients are written without the walk over strides that others take."""
    generator = torch.Generator().manual_seed(3)
    x, dy = (torch.randn(7, 33, 5, generator=generator).to(dtype) for _ in range(2))
    found = []
    for order in ((0, 1), (1, 0)):
        weight, bias = (torch.randn(33, 5, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in (4, 5))
        weight, bias = (v.permute(order).contiguous().permute(order).requires_grad_() for v in (weight, bias))
        y = layer_norm(x, (33, 5), weight, bias)
        found.append(torch.autograd.grad(y, (weight, bias), dy))
    assert [g.stride() for g in found[0]] == [(5, 1)] * 2
    assert [g.stride() for g in found[1]] == [(1, 33)] * 2
    for contiguous, strided in zip(*found, strict=True):
        assert torch.equal(contiguous, strided)
