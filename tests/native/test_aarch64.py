"""The kernels on AArch64, where this machine has none: built by a cross compiler, run by qemu-user (`make aarch64`)."""

import os
import re
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch

import equal_numbers
import gated_cases
import quantized_cases
from conformance import CASES, DTYPES, Case, make_inputs, pair_sample
from conforms import conforms
from through_aarch64 import FORWARD, GATED_BACKWARD, GATED_FORWARD, QUANTIZED, Kernels, backend, is_served, unset
from tolerances import check, expected

COMMAND = os.environ.get("RMSNORM_AARCH64")
pytestmark = pytest.mark.skipif(not COMMAND, reason="the kernels are not built for AArch64: make aarch64")

VECTORS_SEE = ("operation", "dtype", "weight", "bias", "n", "rows", "p", "layout", "casting")
SERVED = [case for case in CASES if is_served(case) and case.rows * case.n < 1 << 18]
VECTORS = {  # in the disassembly, and how many there must be at least
    "float16 to float32": (r"\tfcvtl\tv\d+\.4s, v\d+\.4h", 1000),
    "float32 to float16": (r"\tfcvtn\tv\d+\.4h, v\d+\.4s", 400),
    "bfloat16 to float32": (r"\t(?:uxtl|ushll|shll)\tv\d+\.4s, v\d+\.4h", 600),
    "to bfloat16": (r"\txtn\tv\d+\.4h, v\d+\.4s", 300),
}
ONE_BY_ONE = {  # how many there may be
    "one half": (r"\tfcvt\t(?:h\d+, [sd]|[sd]\d+, h)", 0),
    "a call for each": (r"\tbl\t.*<rmsnorm::(?:promote|demote)", 0),
    "into one lane": (r"\tmov\tv\d+\.[sh]\[", 300),
}
LENGTHS = (1, 3, 7, 63, 64, 65, 1000, 1023, 4096)


@pytest.fixture(scope="module")
def kernels():
    started = Kernels(COMMAND, threads=2)
    yield started
    started.close()


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-objdump") is None, reason="the cross compiler's objdump is missing")
def test_half_precision_is_converted_by_vector_instructions():
    """Four numbers each. GCC 12 makes lane by lane what simd.h's general expressions say."""
    program = COMMAND.split()[-1]
    listing = subprocess.run(["aarch64-linux-gnu-objdump", "-dC", program], capture_output=True, text=True, check=True)
    found = {name: len(re.findall(pattern, listing.stdout)) for name, (pattern, _) in (VECTORS | ONE_BY_ONE).items()}
    assert {name for name, (_, least) in VECTORS.items() if found[name] < least} == set(), found
    assert {name for name, (_, most) in ONE_BY_ONE.items() if found[name] > most} == set(), found


def bits(t: torch.Tensor) -> torch.Tensor:
    return t.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()])


@pytest.mark.parametrize("case", pair_sample(SERVED, VECTORS_SEE), ids=str)
def test_conformance(case, kernels):
    conforms(backend(kernels), case)


@pytest.mark.parametrize(
    "case", pair_sample(gated_cases.CASES, ("dtype", "group", "groups", "norm_before_gate")), ids=str
)
def test_gated(case, kernels):
    inputs = gated_cases.make_inputs(case)
    x, z, dy = (t if case.n < 2 or t.stride(-1) == 1 else t.contiguous() for t in (inputs.x, inputs.z, inputs.dy))
    y, dx, dz, dweight = unset(x), unset(x), unset(x), unset(inputs.weight)
    options = {"eps": case.eps, "p": case.p, "groups": case.groups, "norm_first": case.norm_before_gate}
    kernels(GATED_FORWARD, x, z, inputs.weight, y, **options)
    kernels(GATED_BACKWARD, dy, x, z, inputs.weight, dx, dz, dweight, **options)
    found = {"y": y, "dx": dx, "dz": dz} | ({} if dweight is None else {"dweight": dweight})
    gated_cases.conforms(case, found, inputs)


@pytest.fixture
def quantize(kernels):
    def run(x, normalized_shape, weight, eps, *, dtype, p=1.0):
        x = x.contiguous()
        q, scale = torch.empty(x.shape, dtype=dtype), torch.empty(*x.shape[:-1], 1)
        kernels(QUANTIZED, x, weight, q, scale, eps=eps, p=p)
        return q, scale

    return run


@pytest.mark.parametrize("case", quantized_cases.CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_quantized(case, quantize):
    quantized_cases.conforms(quantize, case)


@pytest.mark.parametrize("code", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_codes_of_quotients(code, quantize):
    quantized_cases.every_code_and_every_tie(quantize, code)
    quantized_cases.rows_without_a_scale(quantize, code)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("operation", ["rms_norm", "layer_norm"])
def test_the_ends_of_the_range(operation, dtype, kernels):
    """Rows of subnormal, tiny and huge numbers, and two in which one element decides."""
    info, generator = torch.finfo(dtype), torch.Generator().manual_seed(1)
    for n in LENGTHS:
        case = Case(operation, dtype, n, rows=6, weight=dtype, bias=dtype, eps=1e-5)
        unit = 2 * torch.rand(6, n, generator=generator, dtype=torch.float64) - 1
        scale = torch.tensor([info.smallest_normal / 4, info.tiny * 100, info.max, info.max / 1e3, 1.0, 1.0]).double()
        x = unit * scale[:, None]
        x[4, 0], x[5, -1] = info.max / 2, -info.max / 2
        inputs = SimpleNamespace(**{**vars(make_inputs(case)), "x": x.to(dtype)})
        found = backend(kernels).run(case, inputs)
        for name, interval in expected(case, inputs).items():
            check(found[name], interval, f"{name} of {case}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", equal_numbers.LENGTHS)
@pytest.mark.parametrize("operation", ["layer_norm", "rms_norm"])
def test_equal_numbers(operation, n, dtype, kernels):
    equal_numbers.conforms(backend(kernels), operation, n, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_in_its_row(bad, dtype, kernels):
    for n in LENGTHS:
        case = Case(dtype=dtype, n=n, rows=5, weight=dtype, eps=1e-5)
        inputs = make_inputs(case)
        clean = backend(kernels).run(case, inputs)
        inputs.x[2, n // 2] = bad
        found = backend(kernels).run(case, inputs)
        others = [0, 1, 3, 4]
        for name in ("y", "dx"):
            assert torch.equal(bits(found[name][others]), bits(clean[name][others]))
        exact = torch.nn.functional.rms_norm(inputs.x[2].double(), (n,), inputs.weight.double(), 1e-5)
        torch.testing.assert_close(found["y"][2].double(), exact, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("n", [1 << 16, 4, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_number_of_16_bits_is_converted_and_rounded_as_torch_does(dtype, n, kernels):
    """Every number, the midpoints between neighbours, and what lies beside them; bit for bit except NaNs.

    The norm of a row of ones at eps = 0 is the gain. Each row is a head: long, one vector, or a part of one.
    """
    every = torch.arange(-(1 << 15), (1 << 15) + 2, dtype=torch.int32).to(torch.int16).view(dtype)
    every = every[: len(every) // n * n].view(-1, n)
    wide, place = every.float(), torch.finfo(dtype).eps
    beside = (wide * (1 + place / 2), wide * (1 + place / 2 + 2**-23), wide * (1 - place / 4), wide)
    for gain, to in ((every, torch.float32), *((values, dtype) for values in beside)):
        x, y = (torch.ones(1, *gain.shape, dtype=to) for _ in range(2))
        kernels(FORWARD, x, gain, None, y, None, None, eps=0.0)
        found, right = y[0], gain.to(to)
        same = (bits(found) == bits(right)) | (found.isnan() & right.isnan())
        assert same.all(), (gain[~same], found[~same], right[~same])


def test_the_sum_may_be_the_residual_and_the_result_the_input(kernels):
    case = Case("add_rms_norm", torch.bfloat16, 65, 7, residual=torch.bfloat16)
    inputs = make_inputs(case)
    apart = backend(kernels).run(case, inputs)
    x, residual = inputs.x.clone(), inputs.residual.clone()
    kernels(FORWARD, x, inputs.weight, None, x, residual, residual, eps=case.eps)
    assert torch.equal(bits(x), bits(apart["y"]))
    assert torch.equal(bits(residual), bits(apart["s"]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads_change_no_bit(dtype, kernels):
    alone = Kernels(COMMAND, threads=1)
    for operation, rows, n in (("rms_norm", 1500, 65), ("layer_norm", 40, 4100)):
        case = Case(operation, dtype, n, rows, bias=torch.float32)
        inputs = make_inputs(case)
        one, two = (backend(k).run(case, inputs) for k in (alone, kernels))
        for name, result in one.items():
            assert torch.equal(bits(result), bits(two[name])), name
    alone.close()
