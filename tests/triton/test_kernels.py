"""The Triton kernels in Triton's interpreter, which is told of at import: each group in an interpreter of its own."""

import pytest

pytest.importorskip("triton", reason="the kernels are Triton's (pip install triton)")

GROUPS = {
    "conformance, first half": "conformance(0, 8)",
    "conformance, second half": "conformance(4, 8)",
    "rows": "rare_rows(); elements_beyond_the_first_k(); not_finite(); a_row_alone(); heads()",
    "rare gradients": "rare_gradients()",
    "addresses": "addresses_are_what_the_compiler_is_told()",
    "memory": "awkward_memory(); no_compilation_for_another_number_of_rows(); the_same_gradient_twice()",
    "gated": "gated_norm()",
    "quantized": "quantized_norm()",
    "long rows": "assert long_rows() > 2",
}


@pytest.mark.parametrize("group", GROUPS)
def test_interpreted(group, run_python):
    run_python(f"from triton_checks import *; {GROUPS[group]}", OMP_NUM_THREADS="1")
