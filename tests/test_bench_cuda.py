"""The bench on a CUDA device, as far as it goes without one: its parts with the device's own replaced."""

import json
import sys
from types import ModuleType

import pytest
import torch

from rmsnorm import cli
from rmsnorm.bench import cases, cuda, gpu_providers, providers, report, runner, timing
from rmsnorm.bench.cases import Case
from rmsnorm.bench.records import Record

DEVICE = {"gpu": "a fake", "multiprocessors": 2, "gpu_memory_gib": 1.0, "l2_mib": 1.0, "cuda": "13.0"}


@pytest.fixture
def fake_device(monkeypatch):
    placed = []

    def place(inputs):
        placed.append({name: t.clone() for name, t in inputs.items()})
        return placed[-1]

    monkeypatch.setattr(cuda, "place", place)
    monkeypatch.setattr(cuda, "sample", timing.wall_clock)
    monkeypatch.setattr(cuda, "describe", lambda: dict(DEVICE))
    return placed


@pytest.mark.parametrize("op", ["rms_norm", "add_rms_norm", "layer_norm"])
@pytest.mark.parametrize("direction", cases.DIRECTIONS)
def test_a_case_is_verified_and_timed(op, direction, fake_device, monkeypatch):
    monkeypatch.setattr(cuda, "CHECKED", 1 << 10)
    case = Case(op, direction, "bfloat16", 64, 96, device="cuda")
    known = [p for p in providers.all_providers(1) if p.name in ("rmsnorm", "F.rms_norm", "copy", "numpy")]
    record = runner.run_case(case, known, timing.QUICK, lambda what: None)
    assert not record.wrong
    assert "rmsnorm" in record.results
    assert "copy" in record.results
    assert "numpy" not in record.results
    assert record.machine["gpu"] == "a fake"
    assert record.results["rmsnorm"].errors["y"] >= 0
    assert Record.from_json(json.loads(record.to_json())) == record
    assert "a fake, CUDA 13.0" in report.about(record.machine)
    # A small case to verify on, then as many sets of the inputs as the cache forgets.
    assert fake_device[0]["x"].shape == (10, 96)
    sets = cuda.copies(case, 1 << 20)
    assert sets == cuda.MOST_COPIES
    assert [p["x"].shape[0] for p in fake_device[1 : 1 + sets]] == [64] * sets


def test_a_wrong_provider_is_not_timed(fake_device):
    class Wrong(gpu_providers.GPUProvider):
        name = "wrong"
        summary = ""

        def forward(self, case, inputs):
            return lambda: inputs["x"] * 2

    case = Case("rms_norm", "forward", "float32", 8, 32, device="cuda")
    record = runner.run_case(case, [Wrong()], timing.QUICK, lambda what: None)
    assert "off the float64 oracle" in record.wrong["wrong"]


def test_sets_of_inputs():
    small, large = (Case("rms_norm", "forward", "bfloat16", rows, 4096, device="cuda") for rows in (1, 16384))
    assert cuda.copies(small, 50 << 20) == cuda.MOST_COPIES
    assert cuda.copies(large, 50 << 20) == 1
    called = []
    call = cuda.in_turn([lambda i=i: called.append(i) for i in range(3)])
    for _ in range(7):
        call()
    assert called == [0, 1, 2, 0, 1, 2, 0]


def test_the_clock_is_the_devices(monkeypatch):
    said = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            said.append("record")

        def synchronize(self):
            said.append("wait")

        def elapsed_time(self, end):
            return 3.0  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: said.append("idle"))
    assert cuda.sample(lambda: said.append("call"), 4) == pytest.approx(3e6 / 4)
    assert said == ["idle", "record", *["call"] * 4, "record", "wait"]


def test_the_cases_are_those_of_the_bars():
    every = cases.cuda_cases()
    assert len(set(every)) == len(every)
    assert all(case.device == "cuda" and case.threads == 1 for case in every)
    for n in (64, 128, 256, 1024, 2048, 4096, 8192, 16384):
        for direction in cases.DIRECTIONS:
            found = [c for c in every if (c.op, c.n, c.direction, c.dtype) == ("rms_norm", n, direction, "bfloat16")]
            assert any(case.bytes >= 128 << 20 for case in found)
    assert str(every[0]).startswith("rms_norm, forward, bfloat16, cuda, ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_the_command_says_so(capsys):
    assert cli.main(["bench", "--device", "cuda"]) == 2
    assert "needs a CUDA or ROCm device" in capsys.readouterr().err


def test_peers_get_the_same_question(monkeypatch):
    """Each peer is called with eps and gain of the case; their packages are stood in for by recorders."""
    asked = []

    def recorder(name):
        return lambda *args, **options: asked.append((name, args, options))

    modules = {
        "liger_kernel.transformers.functional": ("liger_rms_norm", "liger_layer_norm", "liger_fused_add_rms_norm"),
        "quack": ("rmsnorm",),
        "flash_attn.ops.triton.layer_norm": ("rms_norm_fn", "layer_norm_fn"),
        "apex.normalization.fused_layer_norm": ("fused_rms_norm_affine", "fused_layer_norm_affine"),
    }
    for path, functions in modules.items():
        parts = path.split(".")
        for i in range(len(parts)):
            module = sys.modules.get(".".join(parts[: i + 1])) or ModuleType(".".join(parts[: i + 1]))
            monkeypatch.setitem(sys.modules, ".".join(parts[: i + 1]), module)
            if i:
                setattr(sys.modules[".".join(parts[:i])], parts[i], module)
        for function in functions:
            setattr(module, function, recorder(function))
    inputs = {name: torch.ones(2, 8) for name in ("x", "residual")} | {"weight": torch.ones(8), "bias": torch.ones(8)}
    for provider in gpu_providers.providers():
        for op in provider.serves:
            asked.clear()
            provider.forward(Case(op, "forward", "bfloat16", 2, 8, device="cuda"), inputs)()
            ((name, args, options),) = asked
            assert args[0] is inputs["x"], name
            assert any(a is inputs["weight"] for a in args), name
            assert any(isinstance(a, float) and a == cases.EPS for a in (*args, *options.values())), name
            added = [a for a in (*args, *options.values()) if a is inputs["residual"]]
            assert bool(added) == (op == "add_rms_norm"), name
        assert provider.refuses(Case("rms_norm", "forward", "bfloat16", 2, 8, p=0.5)) is not None
