"""Stage 2: is everything right? Every operation at every kind of length, then what only a device shows."""

import importlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from gpu_stages import cases
from gpu_stages.serving import fresh_plans, served
from gpu_stages.stage import Item, Setting
from rmsnorm_lab.bench import cuda, runner
from rmsnorm_lab.bench.cases import Case
from rmsnorm_lab.bench.torch_providers import Ours, OursOut, TorchProvider

# Tests of tests/triton/test_gpu.py without parameters, all but LAST.
ON_A_DEVICE = (
    "test_in_a_cuda_graph",
    "test_on_another_stream_and_in_place",
    "test_under_autocast",
    "test_packed_heads_without_a_copy",
    "test_zero_rows_leave_the_device_well",
    "test_a_row_and_a_gradient_do_not_depend_on_the_run",
    "test_rare_rows",
)
LAST = "test_compiled"  # Inductor's first compilation on a new machine, which nothing else waits for


def items(setting: Setting) -> Iterator[Item]:
    """What matters most first: one case of each kind of kernel, then what only a device shows, then all cases."""
    first = cases.smoke_first()
    for case in first:
        yield str(case), partial(_verified, setting, case)
    for name in ON_A_DEVICE:
        yield name, partial(_test, setting, name)
    for case in cases.smoke()[len(first) :]:
        yield str(case), partial(_verified, setting, case)
    for case in cases.smoke_out():
        yield f"{case}, out=", partial(_verified, setting, case, OursOut())
    yield LAST, partial(_test, setting, LAST)


def _verified(setting: Setting, case: Case, provider: TorchProvider | None = None) -> dict[str, Any]:
    """The error of each output, whose memory held NaN before, and whether a kernel served the case."""
    inputs, provider, own = runner.make_inputs(case), provider or Ours(), {}
    with fresh_plans(own):
        cuda.poison(inputs)  # for what is made with the call: the memory of out=
        prepared = provider.build(case, inputs)
        cuda.poison(inputs)
        errors = runner.verify(provider, prepared, case, inputs, {})
    return {"errors": {name: float(f"{error:.3g}") for name, error in errors.items()}, **served(setting, own)}


def _test(setting: Setting, name: str) -> dict[str, Any]:
    if setting.rehearsal:
        return {"skipped": "needs a device"}
    own: dict[Any, Any] = {}
    with fresh_plans(own):
        getattr(importlib.import_module("test_gpu"), name)()
    return served(setting, own)
