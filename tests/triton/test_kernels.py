"""The Triton kernels in Triton's interpreter: each case runs in the process of tests/support/triton_process.py.

Each test also says which kernels must have served: a composite in their place would be as right.
"""

import math
import os

import pytest
import torch

pytest.importorskip("triton", reason="the kernels are Triton's (pip install triton)")

import triton_checks as checks
from conformance import CASES, Case
from gated_cases import CASES as GATED_CASES
from gated_cases import Case as GatedCase
from quantized_cases import CASES as QUANTIZED_CASES
from quantized_cases import FP8
from triton_process import InterpreterProcess

SMALL = [case for case in CASES if 0 < case.rows * case.n <= 4000]
LOOPED = [
    *[case for case in SMALL if case.n in (33, 65, 127, 129, 1000)][::14],
    Case(n=100, rows=40, p=0.3),
    Case("add_rms_norm", n=100, rows=9, p=0.5, residual=torch.float32),
    Case(n=100, rows=12, heads=3, p=0.1, weight=torch.float32),
    Case("layer_norm", n=100, rows=9, bias=torch.float32),
    Case("add_rms_norm", torch.bfloat16, 100, 9, p=0.2, residual=torch.bfloat16, bias=torch.float32),
    Case(n=131, rows=12, heads=3, p=0.1, weight=torch.float32, bias=torch.float32),
    Case(dtype=torch.bfloat16, n=128, rows=9, p=0.25, weight=torch.bfloat16, casting="llama"),
    Case(n=7, rows=90),
]
PERSISTENT = [
    Case(n=24, rows=300, p=0.3),
    Case("layer_norm", torch.bfloat16, 100, 60, bias=torch.float32),
    Case("add_rms_norm", torch.bfloat16, 1000, 7, residual=torch.bfloat16),
    Case(n=100, rows=42, heads=3, weight=torch.float32, bias=torch.float32, layout="transposed"),
]
IN_PARTS = [
    Case(dtype=torch.bfloat16, n=5120, rows=3),
    Case("add_rms_norm", torch.bfloat16, 7168, 3, residual=torch.bfloat16, bias=torch.float32),
    Case(n=2880, rows=6, p=0.8, heads=3, weight=torch.float32),
    Case(n=7001, rows=2, p=0.1, weight=None),
    Case(dtype=torch.bfloat16, n=2880, rows=2, weight=torch.bfloat16, casting="llama", zero_centered=True),
]
SMALL_GATED = [case for case in GATED_CASES if 0 < case.rows * case.n <= 3000]
LOOPED_GATED = [
    GatedCase(torch.float32, 40, group, 3, 0.5, torch.bfloat16, 1e-5, norm_first, layout, "contiguous", 2.0)
    for norm_first in (False, True)
    for group, layout in ((24, "sliced"), (33, "contiguous"))
]
SMALL_QUANTIZED = [case for case in QUANTIZED_CASES if 0 < case["rows"] * case["n"] <= 3000]
LOOPED_QUANTIZED = [
    case for code in (torch.int8, FP8) for case in [c for c in SMALL_QUANTIZED if c["n"] > 64 and c["code"] == code][:3]
]
CODES = pytest.mark.parametrize("code", [torch.int8, FP8], ids=str)
BOTH_KINDS = pytest.mark.parametrize("n", [24, 100], ids=["in registers", "looped"])
OPERATIONS = pytest.mark.parametrize("operation", ["rms_norm", "layer_norm"])


def quantized_id(case):
    return "-".join(str(value).removeprefix("torch.") for value in case.values())


def both(operation):
    """The kernels of an operation, forward and backward."""
    return {operation, operation.removeprefix("add_") + "_backward"}


def of_case(case):
    """The same of a conformance case; Llama's casting with several dtypes may be declined."""
    mixed = any(dtype not in (None, case.dtype) for dtype in (case.weight, case.bias, case.residual))
    if case.casting == "llama" and mixed:
        return set()
    if case.operation == "add_rms_norm" and (case.residual != case.dtype or case.layout in ("transposed", "expanded")):
        return {"rms_norm_backward"}  # torch may add: dtypes differ, or a sum's rows would not lie as the input's
    return both(case.operation)


@pytest.fixture(scope="module")
def interpreted():
    """Runs a function of triton_checks where kernels are interpreted; these kernels must serve there."""
    process = InterpreterProcess()

    def run(wanted, check, *arguments):
        served = {name for name, times in process(check, *arguments).items() if times}
        assert served >= wanted, f"declined: {wanted - served}"

    yield run
    process.end()


@pytest.mark.parametrize("case", SMALL[::4], ids=str)
def test_conformance(case, interpreted):
    interpreted(of_case(case), checks.conformance, case)


@pytest.mark.parametrize("case", SMALL[2::16], ids=str)
def test_conformance_without_the_calls_in_cpp(case, interpreted):
    interpreted(of_case(case), checks.conformance_without_cpp, case)


@pytest.mark.parametrize("case", LOOPED, ids=str)
def test_rows_that_are_looped_and_sums_of_several_leaves(case, interpreted):
    interpreted(of_case(case), checks.looped_conformance, case)


@pytest.mark.parametrize("case", PERSISTENT, ids=str)
def test_rows_of_programs_that_stay(case, interpreted):
    interpreted(of_case(case), checks.persistent_conformance, case)


@pytest.mark.parametrize("case", IN_PARTS, ids=str)
def test_rows_in_parts(case, interpreted):
    interpreted(of_case(case), checks.conformance_in_parts, case)


@pytest.mark.parametrize("case", SMALL_GATED[::2], ids=str)
def test_gated(case, interpreted):
    interpreted(both("rms_norm_gated"), checks.gated, case)


@pytest.mark.parametrize("case", LOOPED_GATED, ids=str)
def test_gated_sums_of_several_leaves(case, interpreted):
    interpreted(both("rms_norm_gated"), checks.looped_gated, case)


def test_silu(interpreted):
    interpreted({"rms_norm_gated"}, checks.silu)


@pytest.mark.parametrize("case", SMALL_QUANTIZED[::2], ids=quantized_id)
def test_quantized(case, interpreted):
    interpreted({"rms_norm_quantized"}, checks.quantized, case)


@pytest.mark.parametrize("case", LOOPED_QUANTIZED, ids=quantized_id)
def test_quantized_rows_that_are_looped(case, interpreted):
    interpreted({"rms_norm_quantized"}, checks.looped_quantized, case)


@CODES
def test_every_code_and_every_tie(code, interpreted):
    interpreted({"rms_norm_quantized"}, checks.every_code_and_every_tie, code)


@CODES
def test_quantized_rows_without_a_scale(code, interpreted):
    interpreted({"rms_norm_quantized"}, checks.quantized_rows_without_a_scale, code)


@pytest.mark.parametrize("exponent", [-148, -130, -80, -50, 0, 50, 62, 100, 126])
@OPERATIONS
@BOTH_KINDS
def test_rare_rows(n, operation, exponent, interpreted):
    interpreted({operation}, checks.rare_row, n, operation, exponent)


@pytest.mark.parametrize(
    ("exponent", "gradient"), [(-140, -60), (-100, -110), (-40, -110), (-60, 60), (60, -100), (60, 60), (120, 0)]
)
@OPERATIONS
@BOTH_KINDS
def test_rare_gradients(n, operation, exponent, gradient, interpreted):
    interpreted(both(operation), checks.rare_gradient, n, operation, exponent, gradient)


@pytest.mark.parametrize(("exponent", "gradient"), [(0, 0), (62, 0), (30, 90), (120, 0), (126, 1), (100, -100)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_large_rows_in_a_program_of_their_own(dtype, exponent, gradient, interpreted):
    interpreted(both("rms_norm"), checks.large_in_a_program_of_its_own, 1024, dtype, exponent, gradient)


@pytest.mark.parametrize(("small", "large"), [(-120, 4), (-20, 100), (30, 105), (-140, -20)])
@pytest.mark.parametrize("n", [40, 80], ids=["in registers", "looped"])
def test_elements_beyond_the_first_k(n, small, large, interpreted):
    interpreted({"rms_norm"}, checks.beyond_the_first_k, n, small, large)


@BOTH_KINDS
def test_not_finite(n, interpreted):
    interpreted({"rms_norm"}, checks.not_finite, n)


@pytest.mark.parametrize(("dtype", "n"), [(torch.float32, 48), (torch.bfloat16, 257), (torch.float32, 1000)])
def test_a_row_alone(dtype, n, interpreted):
    interpreted({"rms_norm"}, checks.a_row_alone, dtype, n)


@pytest.mark.parametrize(("n", "p"), [(104, 1.0), (104, 0.2), (101, 0.2), (24, 1.0)])
def test_addresses_are_what_the_compiler_is_told(n, p, interpreted):
    interpreted(both("rms_norm"), checks.aligned_addresses, n, p)


@pytest.mark.parametrize(
    ("check", "wanted"),
    [
        (checks.heads, both("rms_norm")),
        (checks.no_rows, both("rms_norm")),
        (checks.in_place, {"rms_norm", "add_rms_norm"}),
        (checks.long_partial_rows_in_place, {"rms_norm", "add_rms_norm"}),
        (checks.outputs_between_inputs, {"rms_norm"}),
        (checks.too_many_levels_of_strides, {"rms_norm"}),
        (checks.under_vmap, {"rms_norm"}),
        (checks.freed_memory, set()),
        (checks.gradients_of_other_parameters, both("rms_norm")),
        (checks.outputs_that_overlap_themselves, set()),
        (checks.a_kernel_that_cannot_be_loaded_now, {"rms_norm"}),
        (checks.more_heads_than_a_grid_has_programs, set()),
        (checks.no_compilation_for_another_number_of_rows, both("rms_norm")),
        (checks.the_same_gradient_twice, both("rms_norm")),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_memory_and_launches(check, wanted, interpreted):
    interpreted(wanted, check)


def test_what_fails_in_the_interpreter_fails_here(interpreted):
    with pytest.raises(pytest.fail.Exception, match="ValueError: "):
        interpreted(set(), math.sqrt, -1.0)
    with pytest.raises(pytest.fail.Exception, match="process died in _exit"):
        interpreted(set(), os._exit, 1)
    with pytest.raises(AssertionError, match=r"declined: \{'layer_norm'\}"):
        interpreted({"layer_norm"}, checks.no_rows)
