"""QK-norm with a rotary embedding in the benchmark: what providers compute, what is wrong. No test asserts a time."""

import pytest
import torch

from rmsnorm import native, timing
from rmsnorm.cli import main
from rmsnorm_lab.bench import cases, rotary_cases, rotary_providers
from rmsnorm_lab.bench.oracle import WrongError
from rmsnorm_lab.bench.runner import run_case

pytestmark = pytest.mark.skipif(bool(native.missing), reason=native.missing or "")
CASES = [cases.Case("rms_norm_rotary", d, dtype, 130, 16) for d in cases.TRAINED for dtype in cases.USUAL_DTYPES]
EAGER = [rotary_providers.Ours(), rotary_providers.OursSeparate(), rotary_providers.Separate()]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("provider", EAGER, ids=lambda p: p.name)
def test_every_provider_computes_it(provider, case):
    inputs = rotary_cases.make_inputs(case)
    found = rotary_cases.step(case, provider.function(), inputs)()
    assert len(rotary_cases.RotaryOracle(case, inputs).check(found)) == (6 if case.backward else 2)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_forgotten_is_wrong(case):
    inputs = rotary_cases.make_inputs(case)
    oracle, right = rotary_cases.RotaryOracle(case, inputs), EAGER[0].function()
    for wrong in (
        lambda q, k, cos, sin, *gains: right(q, k, cos, -sin, *gains),
        lambda q, k, cos, sin, *gains: right(q, k, cos.roll(1, 1), sin.roll(1, 1), *gains),
        lambda q, k, cos, sin, *gains: right(q, k, cos, sin, *(1 + 0 * g for g in gains)),
        lambda q, k, *others: (right(q, k, *others)[0], k + 0 * right(q, k, *others)[1]),
    ):
        with pytest.raises(WrongError, match="off the oracle"):
            oracle.check(rotary_cases.step(case, wrong, inputs)())
    results = rotary_cases.step(case, right, inputs)()
    with pytest.raises(WrongError, match="results; got 1"):
        oracle.check(results[:1])
    with pytest.raises(WrongError, match="y_q must have the shape"):
        oracle.check((results[0].transpose(1, 2), *results[1:]))


def test_it_is_verified_and_timed():
    known = rotary_providers.providers()
    record = run_case(CASES[0], [p for p in known if p.name != "torch.compile"], timing.QUICK, lambda what: None)
    assert record.wrong == {}
    assert list(record.results) == ["rmsnorm", "rmsnorm-separate", "F.rms_norm", "clone"]
    assert record.ratio("rmsnorm", "clone") is not None


def test_the_size_counts_all_heads():
    heads = cases.QUERY_HEADS + cases.KEY_HEADS
    assert CASES[0].bytes == 130 * 16 * heads * 4 == CASES[0].bytes_moved / 2
    inputs = rotary_cases.make_inputs(CASES[0])
    assert sum(inputs[name].nbytes for name in ("q", "k")) == CASES[0].bytes
    assert inputs["q"].transpose(1, 2).is_contiguous()
    assert not torch.equal(inputs["cos"], torch.ones_like(inputs["cos"]))


def test_the_command_lists_them_only_if_they_are_named(capsys):
    assert main(["bench", "--list", "--op", "rms_norm_rotary", "--shape", "3x8"]) == 0
    said = capsys.readouterr().out
    assert "rms_norm_rotary, forward+backward, bfloat16" in said
    assert main(["bench", "--list"]) == 0
    assert "rms_norm_rotary," not in capsys.readouterr().out
