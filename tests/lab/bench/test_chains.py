"""Compiled chains in the benchmark: what providers compute, what is compared, the table. No test asserts a time."""

import dataclasses

import pytest

from rmsnorm import native, timing
from rmsnorm.cli import main
from rmsnorm_lab.bench import case_tables, cases, chain_cases, chain_providers
from rmsnorm_lab.bench.oracle import WrongError
from rmsnorm_lab.bench.records import Machine, Record, Result
from rmsnorm_lab.bench.runner import run_case

pytestmark = pytest.mark.skipif(bool(native.missing), reason=native.missing or "")
CASES = [
    cases.Case("compiled_chain", direction, dtype, 5, 33) for direction in cases.TRAINED for dtype in cases.USUAL_DTYPES
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("provider", chain_providers.providers(), ids=lambda p: p.name)
def test_every_provider_computes_the_chain(provider, case):
    inputs = chain_cases.make_inputs(case)
    found = chain_cases.step(case, chain_cases.chain(provider.link), inputs)()
    chain_cases.ChainOracle(case, inputs).check(found)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_forgotten_gain_or_addition_is_wrong(case):
    inputs = chain_cases.make_inputs(case)
    oracle, link = chain_cases.ChainOracle(case, inputs), chain_providers.Norm().link
    for wrong in (
        lambda h, y, gain: link(h, y, 1 + 0 * gain),
        lambda h, y, gain: link(h, None, gain),
    ):
        with pytest.raises(WrongError, match="off the oracle"):
            oracle.check(chain_cases.step(case, chain_cases.chain(wrong), inputs)())


def test_a_missing_result_is_wrong():
    case = CASES[-1]
    inputs = chain_cases.make_inputs(case)
    oracle, found = chain_cases.ChainOracle(case, inputs), chain_cases.step(case, _eager(), inputs)()
    with pytest.raises(WrongError, match="3 results; got 2"):
        oracle.check(found[:2])


def _eager():
    return chain_cases.chain(chain_providers.Stock().link)


def test_the_compiled_chain_is_verified_and_timed(monkeypatch):
    monkeypatch.setattr(chain_cases, "PAIRS", 2)  # of eight, whose compilation takes half as long again
    record = run_case(CASES[0], chain_providers.providers()[:1], timing.QUICK, lambda what: None)
    assert record.wrong == {}
    assert list(record.results) == ["chain-F.rms_norm"]


def test_the_table_divides_by_torchs_chain():
    results = {
        name: Result("compiled_chain", True, False, {"y": 1e-7}, [8e3 * time for time in times])
        for name, times in {
            "chain-F.rms_norm": [10.0, 20.0, 10.0],
            "chain-rms_norm": [5.0, 10.0, 9.0],
            "chain-add_rms_norm": [20.0, 40.0, 20.0],
        }.items()
    }
    machine = Machine("cpu", None, None, 1, {}, None, "os", {}, "3.11", {}, None, None)
    record = Record(dataclasses.replace(CASES[0], threads=2), "2026-11-27", machine, 0.0, results, {}, {})
    table = case_tables.markdown([record])
    assert "| 5 × 33, float32, forward | 10.0 µs | 0.50 | 2.00 |" in table
    assert "threads: 2" in table


def test_the_command_lists_them_only_if_they_are_named(capsys):
    assert main(["bench", "--list", "--op", "compiled_chain", "--shape", "3x8"]) == 0
    said = capsys.readouterr().out
    assert "compiled_chain, forward+backward, bfloat16" in said
    assert main(["bench", "--list"]) == 0
    assert "compiled_chain," not in capsys.readouterr().out
