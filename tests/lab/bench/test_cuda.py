"""The bench on a CUDA device, as far as it goes without one: its parts with the device's own replaced."""

import inspect
import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from rmsnorm import cli, timing
from rmsnorm_lab.bench import (
    case_sets,
    case_tables,
    cases,
    cuda,
    device_oracle,
    gpu_providers,
    oracle,
    providers,
    runner,
    torch_providers,
)
from rmsnorm_lab.bench.cases import Case
from rmsnorm_lab.bench.records import parse

DEVICE = cuda.Device(gpu="a fake", multiprocessors=2, gpu_memory_gib=1.0, l2_mib=1.0, cuda="13.0")


@pytest.fixture
def fake_device(monkeypatch):
    monkeypatch.setattr(cuda, "DEVICE", "cpu")
    monkeypatch.setattr(cuda, "sample", timing.wall_clock)
    monkeypatch.setattr(cuda, "describe", lambda: DEVICE)


@pytest.mark.parametrize("op", ["rms_norm", "add_rms_norm", "layer_norm"])
@pytest.mark.parametrize("direction", cases.DIRECTIONS)
def test_a_case_is_verified_and_timed(op, direction, fake_device, monkeypatch):
    case = Case(op, direction, "bfloat16", 64, 96, device="cuda")
    built = []
    build = torch_providers.Ours.build
    monkeypatch.setattr(torch_providers.Ours, "build", lambda *a: built.append(a[2]["x"].data_ptr()) or build(*a))
    known = [p for p in providers.all_providers(1) if p.name in ("rmsnorm", "F.rms_norm", "copy", "numpy")]
    record = runner.run_case(case, known, timing.QUICK, lambda what: None)
    assert not record.wrong
    assert "rmsnorm" in record.results
    assert "copy" in record.results
    assert "numpy" not in record.results
    assert record.machine.gpu == "a fake"
    found = record.results["rmsnorm"].errors
    assert set(found) == set(case.outputs)
    assert max(found.values()) > 0  # what is rounded to bfloat16 is not the oracle's float64
    assert parse("a file", 1, record.to_json()) == record
    assert "a fake, CUDA 13.0" in case_tables.about(record.machine)
    # As many sets of the inputs as the cache forgets, each in memory of its own.
    assert len(set(built)) == len(built) == cuda.copies(case, 1 << 20) == cuda.MOST_COPIES


@pytest.mark.parametrize("dtype", cases.USUAL_DTYPES)
@pytest.mark.parametrize(
    ("op", "p"),
    [(op, 1.0) for op in (*cases.PLAIN, "rms_norm_heads", "rms_norm_gated")]
    + [("rms_norm", 0.3), ("rms_norm_heads", 0.3), ("rms_norm_gated", 0.3)],
)
def test_the_devices_oracle_is_the_reference(op, p, dtype, monkeypatch):
    monkeypatch.setattr(device_oracle, "ELEMENTS", 1 << 10)  # sums over rows in several pieces
    case = Case(op, "forward+backward", dtype, 36, 130, p=p, device="cuda")  # 4 heads
    inputs = oracle.make_inputs(case)
    there = device_oracle.make_oracle(case, inputs)
    assert isinstance(there, device_oracle.DeviceOracle)  # NumPy's takes 2 s for 16 rows of 131072 elements
    found, wanted = there.want, oracle.Oracle(case, inputs).want
    assert set(found) == set(wanted) == set(case.outputs)
    for name, want in wanted.items():
        np.testing.assert_allclose(found[name], want, rtol=1e-10, atol=1e-12, err_msg=name)


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
    every = case_sets.cuda_cases()
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


# The peers' functions and all of their parameters, from their sources: liger-kernel 0.8.5, quack-kernels 0.6.5,
# one commit of flash-attn; apex's are not checked against a release. "=" marks those with a default.
PEERS = {
    "liger_kernel.transformers.functional": {
        "liger_rms_norm": "X W eps offset= casting_mode= in_place=",
        "liger_layer_norm": "X W B eps",
        "liger_fused_add_rms_norm": "X R W eps offset= casting_mode= in_place=",
    },
    "quack": {"rmsnorm": "x weight= bias= residual= out_dtype= residual_dtype= eps= prenorm= weight_offset="},
    "flash_attn.ops.triton.layer_norm": {
        "rms_norm_fn": "x weight bias residual= x1= weight1= bias1= eps= dropout_p= rowscale= prenorm= "
        "residual_in_fp32= zero_centered_weight= return_dropout_mask= out_dtype= out= residual_out=",
        "layer_norm_fn": "x weight bias residual= x1= weight1= bias1= eps= dropout_p= rowscale= prenorm= "
        "residual_in_fp32= zero_centered_weight= is_rms_norm= return_dropout_mask= out_dtype= out= residual_out=",
    },
    "apex.normalization.fused_layer_norm": {
        "fused_rms_norm_affine": "input weight normalized_shape eps= memory_efficient=",
        "fused_layer_norm_affine": "input weight bias normalized_shape eps= memory_efficient=",
    },
}
ROLES = {"x": ("X", "x", "input"), "weight": ("W", "weight"), "bias": ("B", "bias"), "residual": ("R", "residual")}


def signature(parameters):
    kind, needed = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
    named = ((p.rstrip("="), None if p.endswith("=") else needed) for p in parameters.split())
    return inspect.Signature([inspect.Parameter(name, kind, default=default) for name, default in named])


@pytest.mark.parametrize("path", PEERS)
def test_an_installed_peer_has_this_signature(path):
    module = pytest.importorskip(path, reason="the peer is not installed", exc_type=ImportError)
    for function, parameters in PEERS[path].items():
        own, listed = (
            [(p.name, p.default is p.empty) for p in each.parameters.values()]
            for each in (inspect.signature(getattr(module, function)), signature(parameters))
        )
        assert own == listed, function


def test_a_wrong_keyword_of_a_peer_fails():
    with pytest.raises(TypeError, match="unexpected keyword argument 'epsilon'"):
        signature(PEERS["quack"]["rmsnorm"]).bind(torch.ones(1), epsilon=1e-6)


def test_peers_get_the_same_question(monkeypatch):
    """Each peer is called with the tensors and eps of the case in the right places. Recorders with the peers'
    signatures take the place of their packages, and refuse the calls that the peers would refuse."""
    asked = []

    def recorder(name, parameters):
        bind = signature(parameters).bind
        return lambda *args, **options: asked.append((name, bind(*args, **options).arguments))

    for path, functions in PEERS.items():
        parts = path.split(".")
        for i in range(len(parts)):
            module = sys.modules.get(".".join(parts[: i + 1])) or ModuleType(".".join(parts[: i + 1]))
            monkeypatch.setitem(sys.modules, ".".join(parts[: i + 1]), module)
            if i:
                setattr(sys.modules[".".join(parts[:i])], parts[i], module)
        for function, parameters in functions.items():
            setattr(module, function, recorder(function, parameters))
    inputs = {name: torch.ones(2, 8) for name in ("x", "residual")} | {"weight": torch.ones(8), "bias": torch.ones(8)}
    for provider in gpu_providers.providers():
        for op in provider.serves:
            asked.clear()
            provider.forward(Case(op, "forward", "bfloat16", 2, 8, device="cuda"), inputs)()
            ((name, given),) = asked
            assert given["eps"] == cases.EPS, name
            expected = {"x", "weight"} | {"layer_norm": {"bias"}, "add_rms_norm": {"residual"}}.get(op, set())
            for role, names in ROLES.items():
                (value,) = [given[n] for n in names if n in given] or [None]
                assert value is (inputs[role] if role in expected else None), f"{role} of {name}"
            if name.startswith("liger") and op != "layer_norm":
                assert (given["offset"], given["casting_mode"], given["in_place"]) == (0.0, "gemma", False)
            if op == "add_rms_norm" and not name.startswith("liger"):
                assert given["prenorm"] is True, name  # else the sum is not returned
        assert provider.refuses(Case("rms_norm", "forward", "bfloat16", 2, 8, p=0.5)) is not None
