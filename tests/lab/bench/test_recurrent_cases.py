"""Recurrent networks in the benchmark: the loop that is its oracle, the providers, and flags of their own."""

import dataclasses
import json

import pytest
import torch

import plain_rnn
from rmsnorm.cli import main
from rmsnorm.timing import QUICK
from rmsnorm_lab.bench import case_sets, cases, providers, recurrent_oracle
from rmsnorm_lab.bench.recurrent_oracle import RecurrentOracle
from rmsnorm_lab.bench.runner import run_case
from rmsnorm_lab.experiments import norms

SMALL = [
    case for case in case_sets.quick_cases(1) if case.recurrent and case.backward
]  # 5 steps, 3 sequences, 7 features, hidden 33


def test_a_figure_tells_the_networks_apart():
    shown = [p for p in providers.all_providers(1) if p.kind == "recurrent" and not p.limit]
    assert len({(p.colour, p.marker) for p in shown}) == len(shown) > 6
    assert all(p.colour == norms.entry(p.norm).colour for p in shown)


@pytest.mark.parametrize("case", SMALL, ids=lambda c: c.op)
@pytest.mark.parametrize("norm", ["none", "layer", "rms", "prms"])
def test_the_loop_is_the_equations(case, norm):
    case = dataclasses.replace(case, norm=norm)
    inputs = {name: t.double() for name, t in recurrent_oracle.make_inputs(case).items()}
    own = {name: inputs[name] for name in recurrent_oracle.parameter_names(case)}
    name = {"none": None, "prms": "rms"}.get(norm, norm)
    plain = plain_rnn.Plain(case.op.upper(), own, name, cases.P if norm == "prms" else 1.0, cases.EPS, "paper")
    zero = torch.zeros(33, dtype=torch.float64)
    expected = torch.stack([torch.stack(plain.run(inputs["x"][:, b], zero, zero, False)[0]) for b in range(3)], 1)
    assert (recurrent_oracle.loop(case, inputs) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("case", SMALL, ids=lambda c: c.op)
def test_every_provider_agrees_with_the_loop(case):
    known = providers.all_providers(1)
    record = run_case(case, known, QUICK, lambda what: None)
    assert not record.wrong
    assert set(record.results) == {p.name for p in known if p.kind == "recurrent"}
    assert all(max(r.errors.values()) < 1e-4 for r in record.results.values() if not r.limit)
    assert record.results["rmsnorm-prms"].computes == f"{case.op} prms"


@pytest.mark.parametrize("spoil", range(4))
def test_wrong_results_are_caught(spoil):
    case = dataclasses.replace(SMALL[0], norm="rms")
    inputs = recurrent_oracle.make_inputs(case)
    oracle = RecurrentOracle(case, inputs)
    right = [t.float() for t in oracle.want]
    oracle.check(right)
    wrong = list(right)
    wrong[spoil] = wrong[spoil] * 1.01
    with pytest.raises(recurrent_oracle.WrongError, match="off the float64 loop"):
        oracle.check(wrong)
    with pytest.raises(recurrent_oracle.WrongError, match=r"must return \d+ arrays"):
        oracle.check(right[:-1])
    with pytest.raises(recurrent_oracle.WrongError, match="must be"):
        oracle.check([right[0][:-1], *right[1:]])


def test_norms_and_networks_have_shapes_of_their_own():
    default = case_sets.default_cases(2)
    four, two = case_sets.shape("9x4x6x8"), case_sets.shape("256x64")
    chosen = case_sets.choose(default, {"op": [{"op": "gru"}], "shape": [four]})
    assert {(c.op, c.steps, c.batch, c.features, c.n, c.rows) for c in chosen} == {("gru", 9, 4, 6, 8, 36)}
    assert all(not c.recurrent for c in case_sets.choose(default, {"shape": [two]}))
    assert all(c.recurrent for c in case_sets.choose(default, {"shape": [four]}))
    assert chosen[0].shape == "9x4x6x8"
    assert chosen[0].work == (2.0 * 36 * 24 * 14 * 3, "GFLOP/s")


@pytest.mark.parametrize(
    "arguments",
    [["--op", "gru", "--shape", "256x64"], ["--op", "rms_norm", "--shape", "9x4x6x8"], ["--op", "lstm", "--p", "0.5"]],
)
def test_what_does_not_go_together_is_refused(arguments, capsys):
    assert main(["bench", *arguments]) == 2
    assert "STEPSxBATCHxFEATURESxHIDDEN for gru and lstm" in capsys.readouterr().err


def test_recorded_and_read_back(tmp_path, capsys):
    file = tmp_path / "run.json"
    arguments = [
        "bench",
        "--quick",
        "--op",
        "lstm,lstm",
        "--direction",
        "forward",
        "--threads",
        "1",
        "--json",
        str(file),
    ]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "GFLOP/s" in shown
    assert "products (limit)" in shown
    assert json.loads(file.read_text().splitlines()[0])["case"]["steps"] == 5
    picture = tmp_path / "run.png"
    assert main(["bench", "--from", str(file), "--markdown", "--plot", str(picture)]) == 0
    assert "| 5 × 3 × 7 × 33 |" in capsys.readouterr().out
    assert picture.read_bytes()[:4] == b"\x89PNG"
