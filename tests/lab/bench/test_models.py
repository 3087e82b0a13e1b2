"""Whole models in the benchmark: what each provider runs, what is compared, and the table. No test asserts a time."""

import copy

import pytest
import torch

from rmsnorm import native, timing
from rmsnorm.cli import main
from rmsnorm_lab.bench import case_sets, cases, model_cases, model_providers, model_tables
from rmsnorm_lab.bench.model_cases import ModelOracle
from rmsnorm_lab.bench.oracle import WrongError
from rmsnorm_lab.bench.records import Machine, Record, Result
from rmsnorm_lab.bench.runner import run_case
from rmsnorm_lab.errors import UserError

pytest.importorskip("transformers", reason="transformers is not installed (extra dev)")
pytestmark = pytest.mark.skipif(bool(native.missing), reason=native.missing or "")

PREFILL = cases.Case("llama", "forward", "float32", 6, 64)
TOKEN = cases.Case("llama", "forward", "bfloat16", 1, 64)
TRAIN = cases.Case("llama", "forward+backward", "float32", 6, 64)
EAGER = [p for p in model_providers.providers() if not p.name.startswith("compiled")]


@pytest.mark.parametrize("case", [PREFILL, TOKEN, TRAIN], ids=["prefill", "token", "train"])
def test_every_provider_computes_the_model(case):
    record = run_case(case, EAGER, timing.QUICK, lambda what: None)
    assert record.wrong == {}
    assert list(record.results) == ["stock", "nn.RMSNorm", "accelerated", "swapped", "no-norm"]
    assert {r.limit for name, r in record.results.items() if name != "no-norm"} == {False}
    assert not torch._C._dispatch_has_kernel_for_dispatch_key("aten::rms_norm", "CPU")


@pytest.mark.parametrize("case", [PREFILL, TOKEN, TRAIN], ids=["prefill", "token", "train"])
def test_the_models_differ_in_their_norms_alone(case):
    inputs = model_cases.make_inputs(case)
    stock = model_cases.stock(case.n, case.dtype)
    names = {}
    for provider in EAGER:
        model = model_cases.twin(stock)
        provider.change(model)
        assert all(a is b for a, b in zip(model.parameters(), stock.parameters(), strict=True))
        names[provider.name] = {type(norm).__module__ for norm in model_cases.norms(model)}
    assert names["nn.RMSNorm"] == names["accelerated"] == {"torch.nn.modules.normalization"}
    assert len(model_cases.norms(stock)) == 2 * model_cases.LAYERS + 1
    results = {p.name: p.build(case, inputs) for p in EAGER}
    found = {name: prepared.outputs(prepared.call())[-1].clone() for name, prepared in results.items()}
    assert not torch.equal(found["no-norm"], found["stock"])
    repeated = results["stock"].outputs(results["stock"].call())[-1]
    assert torch.equal(repeated, found["stock"]), "each call is of the same token"


@pytest.mark.parametrize("case", [PREFILL, TRAIN], ids=["prefill", "train"])
def test_a_forgotten_gain_is_wrong(case):
    inputs = model_cases.make_inputs(case)
    oracle = ModelOracle(case, inputs)
    model = copy.deepcopy(model_cases.stock(case.n, case.dtype))
    parameters = [*model.parameters()]
    call = model_cases.step(case, model, inputs, parameters)
    oracle.check(model_cases.outputs(case, parameters, call()))
    with torch.no_grad():
        model_cases.norms(model)[0].weight.fill_(1)
    with pytest.raises(WrongError, match="off the float64 model"):
        oracle.check(model_cases.outputs(case, parameters, call()))


def test_models_are_measured_only_if_asked_for():
    assert not [case for case in case_sets.default_cases(2) if case.kind == "model"]
    every = case_sets.model_cases(2, quick=False)
    assert len(every) == len(set(every)) == 3 * 2 * 2 * 3
    chosen = case_sets.choose(every, {"op": [{"op": "llama"}], "shape": [case_sets.shape("9x128")]})
    assert {(c.rows, c.n) for c in chosen} == {(9, 128)}
    of_one = case_sets.choose(every, {"op": [{"op": "llama"}], "shape": [case_sets.shape("1x128")]})
    assert {c.direction for c in of_one} == {"forward"}, "a training step's loss is of the next token"
    with pytest.raises(UserError, match="at least 2 tokens"):
        case_sets.choose(every, {"shape": [case_sets.shape("1x128")], "direction": [{"direction": "forward+backward"}]})
    assert not [
        c for c in case_sets.choose(every + case_sets.default_cases(2), {"op": [{"op": "gru"}]}) if c.kind == "model"
    ]
    assert main(["bench", "--op", "llama", "--p", "0.5"]) == 2


def test_the_table_pairs_each_variant_with_its_own_base():
    def result(*times):
        return Result("llama", True, False, {}, [t * 1e6 for t in times])

    drift = [1, 5, 2, 3, 1, 2]
    made = {"stock": 10, "nn.RMSNorm": 20, "accelerated": 19, "swapped": 9, "compiled": 4, "compiled-swapped": 5}
    results = {name: result(*(t * d for d in drift)) for name, t in made.items()}
    machine = Machine("cpu", None, None, 1, {}, None, "os", {}, "3.11", {}, None, None)
    record = Record(TRAIN, "now", machine, None, results, {}, {})
    lines = model_tables.model_table([record], lambda ns: f"{ns / 1e6:g} ms").markdown().splitlines()
    assert lines[-1] == (
        "| 64, float32, 1: training step of 6 | 20 ms | 0.90 [0.90, 0.90] | – | 0.95 [0.95, 0.95] | "
        "0.40 [0.40, 0.40] | 1.25 [1.25, 1.25] |"
    )
