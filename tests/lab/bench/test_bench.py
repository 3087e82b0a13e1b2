"""The benchmark's machinery: what it refuses, verifies, pairs, keeps and shows. No test asserts a time."""

import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest

from rmsnorm import cli, timing
from rmsnorm_lab import machine
from rmsnorm_lab.bench import cases
from rmsnorm_lab.bench.cases import Case
from rmsnorm_lab.errors import UserError

torch = pytest.importorskip("torch")
pytest.importorskip("rich")

from rmsnorm_lab.bench import case_tables, oracle, provider, providers, records, runner  # noqa: E402

SMALL = ["--shape", "8x64", "--op", "rms_norm", "--p", "1", "--threads", "1", "--quick"]
CASE = Case(op="rms_norm", direction="forward", dtype="float32", rows=8, n=64)


def bench(*arguments):
    return cli.main(["bench", *map(str, arguments)])


# Pairing and order


def _refuse_to_drop(name, error):
    raise AssertionError(name) from error


def test_measure_fits_the_repeats_to_the_cost():
    costs = {"fast": 1e3, "middle": 1e5, "slow": 1e8}
    samples = []

    def clock(call, repeats):
        samples.append((call(), repeats))
        return costs[call()]

    plan = timing.Plan(budget_ns=0, sample_ns=1e6, lead_ns=5e7, rounds=(12, 20))
    times = timing.measure({name: lambda name=name: name for name in costs}, plan, sample=clock, drop=_refuse_to_drop)
    assert times == {name: [cost] * 12 for name, cost in costs.items()}, "no budget gives the fewest rounds"
    leads_and_samples = [("fast", 256), ("fast", 1000), ("middle", 2), ("middle", 10), ("slow", 1)]
    assert Counter(samples[-12 * 5 :]) == dict.fromkeys(leads_and_samples, 12), "a long call needs no lead-in"
    assert timing.measure({}, plan, sample=clock, drop=_refuse_to_drop) == {}


def test_a_call_that_fails_while_timed_costs_nobody_else():
    served, dropped = {"early": 0, "late": 0, "good": 0}, []

    def call(name, last):
        served[name] += 1
        if served[name] > last:
            raise RuntimeError(f"{name} is out of memory")

    named = {name: partial(call, name, last) for name, last in {"early": 0, "late": 4, "good": 10**9}.items()}
    times = timing.measure(
        named,
        timing.Plan(budget_ns=0, sample_ns=1, lead_ns=0, rounds=(5, 5)),
        sample=lambda call, repeats: call() or timing.STEP_NS,
        drop=lambda name, error: dropped.append((name, str(error))),
    )
    assert list(times) == ["good"]
    assert len(times["good"]) == 5
    assert dropped == [("early", "early is out of memory"), ("late", "late is out of memory")]


def test_untimed_calls_go_on_until_they_are_steady():
    costs = iter([1e6, 8e6, 4e6, 1.1e6, 1.0e6] + [9e6] * 9 + [7e6])
    plan = timing.Plan(budget_ns=0, sample_ns=1, lead_ns=5e7, rounds=(2, 2))
    times = timing.measure({"call": lambda: None}, plan, sample=lambda call, repeats: next(costs), drop=_refuse_to_drop)
    # The first costs the warm-up; 8 and 4 ms are not steady, 1.1 is; 1.0 is timed. Then 6 × 9 ms exceed the limit.
    assert times == {"call": [1.0e6, 9e6]}
    assert list(costs) == [9e6, 9e6, 7e6]


def test_rounds_follow_the_budget_and_the_order_changes():
    seen = []
    named = {name: lambda name=name: seen.append(name) for name in "abcd"}
    plan = timing.Plan(budget_ns=1e12, sample_ns=1.0, lead_ns=0.5, rounds=(3, 10))
    times = timing.measure(named, plan, sample=lambda call, repeats: call() or 1e6, drop=_refuse_to_drop)
    rounds = [tuple(seen[start : start + 4]) for start in range(len(seen) - 40, len(seen), 4)]
    assert len(times["a"]) == 10, "an ample budget gives the most rounds"
    assert all(sorted(turn) == list("abcd") for turn in rounds), "each once a round"
    assert len(set(rounds)) > 3, "in changing order"


# Choosing


def test_flags_take_the_place_of_the_defaults():
    changed = cases.choose(cases.default_cases(2), {"shape": [cases.shape("7x65")], "dtype": [{"dtype": "bfloat16"}]})
    assert {(case.rows, case.n, case.dtype) for case in changed} == {(7, 65, "bfloat16")}
    assert len(changed) == len(set(changed))
    assert {case.op for case in changed} == set(cases.OPERANDS)  # a shape of two numbers is a norm's
    assert all(case.p == 1 for case in cases.choose(cases.default_cases(2), {"op": [{"op": "layer_norm"}]}))
    gradients = [{"direction": "forward+backward"}]
    assert all(case.op not in cases.FORWARD_ONLY for case in cases.choose(changed, {"direction": gradients}))
    with pytest.raises(UserError, match="which have no gradient"):
        cases.choose(changed, {"op": [{"op": "rms_norm_quantized"}], "direction": gradients})
    with pytest.raises(UserError, match="no partial statistic"):
        cases.choose(cases.default_cases(2), {"op": [{"op": "layer_norm"}], "p": [{"p": 0.5}]})


@pytest.mark.parametrize(
    ("op", "direction", "arrays"),
    [
        ("rms_norm", "forward", 2),  # x, y
        ("rms_norm", "forward+backward", 5),  # and x, dy, dx
        ("add_rms_norm", "forward", 4),  # x, residual, h, y
        ("rms_norm", "backward", 3),  # x, dy, dx
        ("add_rms_norm", "forward+backward", 8),  # and h, dy, dh, dx
        ("add_rms_norm", "backward", 4),
        ("rms_norm_gated", "backward", 5),
        ("add_rms_norm_inplace", "forward", 4),
        ("rms_norm_heads", "forward+backward", 5),
        ("rms_norm_gated", "forward", 3),  # x, gate, y
        ("rms_norm_gated", "forward+backward", 8),  # and dy, x, gate, dx, dgate
        ("rms_norm_quantized", "forward", 1.25),  # x, and bytes
    ],
)
def test_the_limit_moves_what_the_case_must(op, direction, arrays):
    assert replace(CASE, op=op, direction=direction).bytes_moved == arrays * 8 * 64 * 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--op", "batch_norm"], ["batch_norm", "rms_norm", "layer_norm", "add_rms_norm"]),
        (["--dtype", "float8"], ["float8", "float32", "bfloat16"]),
        (["--direction", "sideways"], ["sideways", "forward+backward"]),
        (["--provider", "apex"], ["apex", "rmsnorm-out", "F.layer_norm", "onnxruntime", "jax", "copy"]),
        (["--shape", "256"], ["256x1024", "'256'"]),
        (["--shape", "0x16"], ["positive", "'0x16'"]),
        (["--p", "1.5"], ["0 < p <= 1", "'1.5'"]),
        (["--threads", "0"], ["from 1 to", "'0'"]),
        (["--device", "tpu"], ["cpu or cuda", "'tpu'"]),
        (["--plot", "figure.doc"], [".png", "figure.doc"]),
        (["--json", "no/such/folder/x.json"], ["no/such/folder"]),
        (["--from", "missing.json"], ["missing.json must be a file that can be read: No such file"]),
    ],
)
def test_wrong_input_is_refused_by_name(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert bench("--quick", *arguments) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in said), message
    assert list(tmp_path.iterdir()) == []


# Verification


def _run(case, *chosen):
    return runner.run_case(case, chosen, timing.QUICK, lambda _: None)


class Fake(provider.Provider):
    """Torch's own norm in float64, spoiled by a function of its outputs."""

    name, summary = "fake", "for tests"

    def __init__(self, spoil=lambda outputs: outputs, computes=None):
        self.spoil, self.computed, self.calls = spoil, computes, 0

    def refuses(self, case):
        return None

    def computes(self, case):
        return self.computed or case

    def build(self, case, inputs):
        truth = oracle.Oracle(case, inputs).want
        dtype, full = getattr(torch, case.dtype), (*case.full_shape[:-1], -1)
        shapes = [case.vector_shape if name in oracle.SUMMED else full for name in case.outputs]
        outputs = [torch.from_numpy(truth[n]).to(dtype).reshape(s) for n, s in zip(case.outputs, shapes, strict=True)]
        outputs = tuple(outputs)
        if case.op == "rms_norm_quantized":
            outputs = outputs[0].round().to(torch.int8), outputs[1]

        def call():
            self.calls += 1
            return self.spoil(outputs)

        return provider.Prepared(call)


def test_right_numbers_are_timed():
    record = _run(CASE, fake := Fake())
    assert record.wrong == {}
    assert record.results["fake"].errors["y"] < 1
    assert len(record.results["fake"].times_ns) == timing.QUICK.rounds[0]
    assert fake.calls > 3


def _nan_last(outputs):
    y = outputs[0].clone()
    y[-1, -1] = float("nan")
    return (y, *outputs[1:])


BOTH = replace(CASE, direction="forward+backward")
QUANTIZED = replace(CASE, op="rms_norm_quantized")
GATED = replace(BOTH, op="rms_norm_gated")
HEADS = replace(BOTH, op="rms_norm_heads")


@pytest.mark.parametrize(
    ("case", "spoil", "said"),
    [
        (CASE, lambda out: (out[0] * 1.0001,), "epsilon off"),
        (CASE, _nan_last, "nan epsilon off"),
        (CASE, lambda out: (out[0][:-1],), r"must be float32 \(8, 64\)"),
        (CASE, lambda out: (out[0].double(),), "torch.float64"),
        (CASE, lambda out: (*out, out[0]), r"must return 1 arrays \(y\); got 2"),
        (BOTH, lambda out: (out[0], -out[1], out[2]), "dx is"),
        (BOTH, lambda out: (*out[:2], torch.zeros_like(out[2])), "dweight is 1 of its norm"),
        (replace(BOTH, dtype="bfloat16"), lambda out: (*out[:2], torch.zeros_like(out[2])), "dweight is 1 of its norm"),
        (replace(CASE, dtype="bfloat16"), lambda out: (out[0] * 1.05,), "epsilon off"),
        (CASE, lambda out: 1 / 0, "ZeroDivisionError"),
        (QUANTIZED, lambda out: (out[0] - 1, out[1]), "q is 1[.0-9]* of a step off"),
        (QUANTIZED, lambda out: (out[0], out[1] * 1.0001), "scale is .* epsilon off"),
        (QUANTIZED, lambda out: (out[0].float(), out[1]), "must be int8"),
        (GATED, lambda out: (out[0], out[1], out[2] * 1.001, out[3]), "dgate is"),
        (HEADS, lambda out: (*out[:2], out[2].roll(1, 0)), "dweight is"),
    ],
)
def test_wrong_numbers_are_caught_and_not_timed(case, spoil, said):
    record = _run(case, fake := Fake(spoil), Good())
    assert list(record.results) == ["good"], "one bad provider must not cost the others"
    assert list(record.wrong) == ["fake"]
    assert re.search(said, record.wrong["fake"])
    assert fake.calls <= 1, "verified once, never timed"


class Good(Fake):
    name = "good"


@pytest.mark.parametrize("dtype", list(cases.DTYPES))
@pytest.mark.parametrize("direction", cases.DIRECTIONS)
@pytest.mark.parametrize("shape", [(1, 1024), (100, 64), (3, 5121)])
def test_one_norm_does_not_pass_for_another(dtype, direction, shape):
    rms = replace(CASE, dtype=dtype, direction=direction, rows=shape[0], n=shape[1])
    partial = replace(rms, p=0.0625)
    inputs = oracle.make_inputs(rms)
    for right, other in [(rms, partial), (partial, rms), (rms, replace(rms, op="layer_norm"))]:
        truth, wrong = oracle.Oracle(right, inputs), oracle.Oracle(other, inputs)
        outputs = [torch.from_numpy(truth.want[name]).to(inputs["x"].dtype) for name in right.outputs]
        truth.check(outputs)
        with pytest.raises(oracle.WrongError):
            wrong.check(outputs if other.op == right.op else [*outputs, torch.zeros(right.n)][: len(other.outputs)])


def test_large_cases_are_checked_on_rows_all_over_and_sums_entirely():
    case = Case("rms_norm", "forward+backward", "float32", rows=oracle.CHECKED // 64 + 7, n=64)
    inputs = oracle.make_inputs(case)
    x = inputs["x"].double().requires_grad_()
    weight = inputs["weight"].double().requires_grad_()
    y = torch.nn.functional.rms_norm(x, (case.n,), weight, cases.EPS)
    dx, dweight = torch.autograd.grad(y, (x, weight), inputs["dy"].double())
    truth = oracle.Oracle(case, inputs)
    assert len(truth.want["y"]) < case.rows
    assert set(truth.check([y.float(), dx.float(), dweight.float()])) == set(case.outputs)
    spoiled = y.detach().float()
    spoiled[-1] = 0
    with pytest.raises(oracle.WrongError, match="y is"):
        truth.check([spoiled, dx.float(), dweight.float()])


PROVIDERS = {p.name: p for p in providers.all_providers(1) if p.kind == "norm" and "cpu" in p.devices}
SERVED = [
    (name, case)
    for name, each in PROVIDERS.items()
    for direction, dtype in itertools.product(cases.DIRECTIONS, cases.DTYPES)
    for op, p in [*((op, 1) for op in cases.OPERANDS), ("rms_norm", 0.0625), ("rms_norm_heads", 0.5)]
    if not (direction != "forward" and op in cases.FORWARD_ONLY)
    if each.refuses(case := Case(op, direction, dtype, rows=6, n=130, p=p)) is None  # two heads
    if name != "torch.compile"  # seconds a case: CI's `rmsnorm bench --quick` takes care of it
]


@pytest.mark.parametrize(("name", "case"), SERVED, ids=[f"{name}: {case}" for name, case in SERVED])
def test_every_provider_agrees_with_the_oracle(name, case):
    if reason := PROVIDERS[name].missing():
        pytest.skip(reason)
    record = _run(case, PROVIDERS[name])
    assert record.wrong == {}
    assert list(record.results) == [name]


def test_a_provider_that_is_not_installed_says_how_to():
    class Absent(Fake):
        needs = ("no_such_package", "json")

    assert Absent().missing() == "not installed: pip install no_such_package"
    assert Fake().missing() is None


def test_pools_of_fixed_size_serve_only_their_own_number_of_threads():
    jax = next(each for each in providers.all_providers(2) if each.name == "jax")
    assert "--threads 1" in jax.refuses(CASE)
    assert jax.refuses(replace(CASE, threads=2)) is None


# Records and what is made of them


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "run.json"
    assert bench(*SMALL, "--provider", "rmsnorm", "F.layer_norm", "copy", "clone", "--json", path) == 0
    return path


def test_json_is_a_whole_record_a_line_and_appends(recorded, tmp_path):
    path = tmp_path / "run.json"
    path.write_bytes(recorded.read_bytes())
    assert bench(*SMALL, "--dtype", "float32", "--provider", "copy", "--json", path) == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["case"]["dtype"] for line in lines] == ["float32", "bfloat16"] * 2 + ["float32"] * 2
    for line in lines:
        assert line["schema"] == records.SCHEMA
        assert {"cpu", "threads", "os", "python", "versions", "commit", "dirty"} <= line["machine"].keys()
        assert line["machine"]["versions"]["torch"]
        assert all(len(result["times_ns"]) == 3 for result in line["results"].values())
    assert lines[0]["results"]["F.layer_norm"]["computes"] == "layer_norm"
    assert lines[0]["results"]["copy"]["limit"] is True
    assert records.load(path)[0].to_json() == path.read_text().splitlines()[0]


RESULTS = sorted(Path(__file__).parents[3].glob("benchmarks/results/*.jsonl"))


@pytest.mark.skipif(not RESULTS, reason="the recorded results are not in this distribution")
def test_every_recorded_result_is_read_and_written_as_it_is():
    read = 0
    for path in RESULTS:
        for line, record in zip(path.read_text(encoding="utf-8").splitlines(), records.load(path), strict=True):
            written, before = json.loads(record.to_json()), json.loads(line)
            if "steps" not in before["case"]:  # written before there were recurrent cases
                before["case"] |= {"steps": 0, "batch": 0, "features": 0, "norm": ""}
            assert written == before
            assert list(written) == list(before)
            read += 1
    assert read > 300


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda line: line["machine"].pop("cpu"), "machine lacks the field 'cpu'"),
        (
            lambda line: line["results"]["copy"].update(times_ns=5),
            "results.copy.times_ns must be list; got 5",
        ),
        (lambda line: line["case"].update(rows=True), "case.rows must be int; got True"),
        (lambda line: line.update(comment="mine"), "Record has the unknown field 'comment'"),
    ],
)
def test_an_incomplete_record_is_refused_by_its_field(recorded, tmp_path, capsys, change, said):
    line = json.loads(recorded.read_text().splitlines()[0])
    change(line)
    path = tmp_path / "run.json"
    path.write_text(json.dumps(line) + "\n")
    assert bench("--from", path) == 2
    assert f"line 1: must be a complete record of schema 'rmsnorm-bench/1'; {said}" in capsys.readouterr().err


def test_another_schema_is_refused_with_its_version(recorded, tmp_path, capsys):
    old = tmp_path / "old.json"
    old.write_text(recorded.read_text() + json.dumps({"schema": "rmsnorm-bench/99", "case": {}}) + "\n")
    before = old.read_bytes()
    for flag in ("--compare", "--from", "--json"):
        assert bench(*SMALL, "--provider", "copy", flag, old) == 2
        message = capsys.readouterr().err
        assert "rmsnorm-bench/99" in message
        assert records.SCHEMA in message
        assert "line 5" in message
    assert old.read_bytes() == before
    old.write_text("rows,time\n")
    assert bench("--from", old) == 2
    assert "line 1" in capsys.readouterr().err


def test_compare_shows_the_earlier_run(recorded, capsys):
    assert bench("--from", recorded, "--compare", recorded) == 0
    assert "now ÷" in (shown := capsys.readouterr().out)
    assert "1.00" in shown
    assert bench(*SMALL, "--provider", "copy", "--compare", recorded) == 0
    assert "now ÷" in capsys.readouterr().out
    assert bench("--from", recorded) == 0
    assert "earlier" not in capsys.readouterr().out


def test_from_keeps_the_last_of_each_case_and_obeys_the_flags(recorded, tmp_path, capsys):
    path = tmp_path / "two.json"
    first = recorded.read_text().splitlines()[0]
    later = json.loads(first)
    for result in later["results"].values():
        result["times_ns"] = [4e6, 4e6, 4e6]
    path.write_text(f"{first}\n{json.dumps(later)}\n{recorded.read_text().splitlines()[1]}\n")
    assert bench("--from", path, "--markdown", "--dtype", "float32", "--direction", "forward") == 0
    text = capsys.readouterr().out
    assert "| 8 × 64 | 4.00 ms | 4.00 ms (1.00) |" in text
    assert "bfloat16" not in text
    assert bench("--from", path, "--op", "add_rms_norm") == 2
    assert "no recorded case" in capsys.readouterr().err
    assert bench("--from", path, "--provider", "copy", "--markdown") == 0
    assert "F.layer_norm" not in capsys.readouterr().out


def test_plot_is_a_picture(recorded, tmp_path):
    pytest.importorskip("matplotlib")
    figure = tmp_path / "figure.png"
    assert bench("--from", recorded, "--plot", figure) == 0
    assert figure.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert figure.stat().st_size > 10_000


def test_table_names_stand_ins_limits_wrong_ones_and_disturbance(recorded):
    from rich.console import Console

    record = replace(records.load(recorded)[0], wrong={"jax": "y is [3] off"}, others=1.52)
    console = Console(width=130, record=True, file=io.StringIO())
    case_tables.case_table(record).show(console)
    text = console.export_text()
    for words in ("F.layer_norm (layer_norm)", "copy (limit)", "not timed: jax: y is [3] off", "1.5 processors"):
        assert words in text


def test_durations():
    expected = {905.4: "905 ns", 999.7: "1.00 µs", 1904: "1.90 µs", 37_373_000: "37.4 ms", 2.5e9: "2.50 s"}
    assert {value: case_tables.duration(value) for value in expected} == expected


def test_a_wrong_provider_makes_the_command_fail(monkeypatch, capsys):
    monkeypatch.setattr(providers, "all_providers", lambda threads: [Fake(lambda out: (out[0] + 1,)), Good()])
    assert bench(*SMALL, "--direction", "forward", "--dtype", "float32") == 1
    assert "not timed: rms_norm, forward, float32, 1 thread, 8x64: fake: y is" in capsys.readouterr().err


def test_list_measures_nothing(capsys, tmp_path):
    assert bench("--list", "--json", tmp_path / "x.json") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in PROVIDERS)
    assert "16384x4096" in shown
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_keeps_what_was_measured(tmp_path):
    path = tmp_path / "run.json"
    shapes = [f"{rows}x64" for rows in range(1, 60)]
    command = [sys.executable, "-m", "rmsnorm.cli", "bench", "--op", "rms_norm", "--provider", "copy", "clone"]
    command += ["--dtype", "float32", "--p", "1", "--shape", *shapes, "--json", str(path)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Started in the background by a shell, the tests ignore SIGINT, and what they start would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text().count("\n") >= 2):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    shown, said = process.communicate(timeout=60)
    kept = records.load(path)
    assert process.returncode == 130
    assert 2 <= len(kept) < 2 * len(shapes)
    assert f"interrupted: {len(kept)} of" in said
    assert "Traceback" not in said
    assert all(str(record.case) in shown for record in kept)


# The record of the machine


def test_machine_is_publishable():
    about = machine.describe()
    text = json.dumps(asdict(about))
    assert about.threads >= 1
    assert about.versions["numpy"]
    home, host = os.path.expanduser("~"), os.uname().nodename
    assert home not in text or len(home) < 3
    assert host not in text or len(host) < 4
    assert (about.commit is None) == (about.dirty is None)
