"""tools/gpu_session.py as far as it goes without a device: its rehearsal, and what it does when things go wrong."""

import json
import math
import os
import subprocess
import sys
import sysconfig
import time
import venv
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

triton = pytest.importorskip("triton")

import gpu_session
from gpu_stages import build, cases, serving, smoke, stage, summary, sweep
from rmsnorm_lab.bench import cuda, oracle, torch_providers
from rmsnorm_lab.bench.cases import PLAIN
from rmsnorm_lab.bench.records import load

ROOT = Path(__file__).parents[2]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def setting(tmp_path):
    return stage.Setting(tmp_path, True, 1 << 12)


def session(out, scratch, deadline=400.0, only=None):
    return gpu_session.Session(out, deadline, True, only, scratch)


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """A Python with this one's packages, but with none of this package's C++: what a lent machine has.

    It does not run the start-up files of the packages, one of which makes the editable install known.
    """
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "packages.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "python"


def rehearse(bare_python, out, *stages, **environment):
    command = [bare_python, ROOT / "tools/gpu_session.py", "--rehearse", "--out", out, "--deadline", "3000"]
    said = subprocess.run(
        [*command, "--only", *stages], capture_output=True, text=True, env=os.environ | environment, check=True
    )
    found = lines(out / "session.jsonl")
    assert [line for line in found if "error" in line] == []
    assert {line["stage"] for line in found} == set(stages)
    return said.stdout, found


def test_a_rehearsal_reaches_every_kind_of_stage(bare_python, tmp_path):
    said, found = rehearse(bare_python, tmp_path, "machine", "host", "sweep")
    assert found[0]["machine"]["isa"] is None  # nothing was built
    assert "not built for this Python" in found[0]["why_no_native"]
    assert found[0]["why_no_nodes"] in said
    assert "| sweep |" in said
    assert any(line.get("ratios") for line in found)
    names = {p.name for p in tmp_path.iterdir()}
    assert {"session.jsonl", "summary.md"} <= names <= {"session.jsonl", "summary.md", "winners.json"}


def test_kernels_are_compiled_without_a_device(bare_python, tmp_path):
    folder = ROOT / "build/triton-3.6.0"  # what the lent machines have; `make test` puts it there
    older = folder.is_dir()
    _, found = rehearse(bare_python, tmp_path, "build", **({"PYTHONPATH": str(folder)} if older else {}))
    assert {line["triton"] for line in found} == {"3.6.0" if older else triton.__version__}


def test_the_key_shapes_are_records_of_the_bench(setting, monkeypatch):
    from gpu_stages import shapes
    from rmsnorm import timing

    monkeypatch.setattr(cuda, "DEVICE", "cpu")
    monkeypatch.setattr(cuda, "sample", timing.wall_clock)
    monkeypatch.setattr(cuda, "describe", stage._no_device)
    monkeypatch.setattr(cases, "SHAPES", (1024, 2880))
    status = stage.run("shapes", shapes.items(setting), setting.folder / "shapes.jsonl", math.inf, 0, setting)
    line, *others = [line for line in lines(setting.folder / "shapes.jsonl") if not line.get("begin")]
    assert status == 0
    assert len(others) == 3
    assert all(other["wrong"] == {} for other in others)
    assert line["wrong"] == {}
    assert set(line["us"]) >= {"rmsnorm", "F.rms_norm", "copy"}
    assert line["share_of_copy"]["copy"] == 1
    record, *rest = load(setting.folder / shapes.RECORDS)
    assert len(rest) == len(others)
    assert str(record.case) == line["item"]
    assert "| shapes: rms_norm, forward" in summary.markdown([line])


def test_the_kernels_to_compile_are_those_of_the_cases(setting, monkeypatch):
    monkeypatch.setattr(cases, "SMOKE", (64, 131072))
    monkeypatch.setattr(cases, "SHAPES", (4096,))
    monkeypatch.setattr(cases, "SWEPT", (4096,))
    monkeypatch.setattr(cases, "PARTIAL", (32768,))
    jobs = list(build.wanted(setting))
    assert len(set(jobs)) == len(jobs)
    names = {job[0].fn.__name__ for job in jobs}
    assert {"forward_kernel", "backward_kernel", "finish_kernel", "gated_kernel", "quantized_kernel"} <= names
    assert {"forward_stream_kernel", "head_kernel"} <= names
    lengths = {dict(job[3]).get("N") for job in jobs}
    assert {64, 131072, 4096, 32768, 128} <= lengths
    case = cases.swept(setting)[0]
    assert any(dict(job[3])["K"] < 32768 for job in jobs if job[0].fn.__name__ == "forward_looped_kernel")
    choices_made = [job[4] for job in jobs if job[0].fn.__name__.startswith("forward") and dict(job[3])["N"] == case.n]
    assert set(sweep.candidates(case, "forward")) <= set(choices_made)


def test_neighbours_of_a_choice_are_launchable(setting):
    for case, kind in [(each, kind) for each in cases.swept(setting) for kind in sweep.kinds(each)]:
        found = sweep.candidates(case, kind)
        assert found[0] == sweep.default(case, kind)
        assert len(found) >= 3
        assert (None in found) == (case.p < 1)
        held = [choice.block * choice.rows // choice.warps for choice in filter(None, found)]
        assert max(held) <= 2 * held[0]  # more elements a thread only spill
        for choice in filter(None, found):
            assert choice.rows >= 1
            assert choice.warps in (1, 2, 4, 8, 16, 32)
            assert choice.block & (choice.block - 1) == 0
            if choice.programs:
                assert choice.programs * choice.warps * 32 * choice.registers <= 65536


def test_smoke_begins_with_each_kind_of_kernel(setting):
    names = []

    def launcher(kernel, *rest):
        names.append(kernel.fn.__name__)
        return lambda *arguments: None

    first = cases.smoke_first()
    with build._on_a_cpu(launcher), serving.fresh_plans({}):
        for case in first:
            case = replace(case, rows=2)
            torch_providers.Ours().build(case, oracle.make_inputs(case)).call()
    kernels = "forward backward finish forward_looped rows columns forward_stream head gated gated_backward quantized"
    assert set(names) >= {f"{name}_kernel" for name in (*kernels.split(), "quantized_looped")}
    order = [name for name, _ in smoke.items(setting)]
    assert order[: len(first)] == [str(case) for case in first]
    assert order[-1] == "test_compiled"
    assert len(set(order)) == len(order)
    assert not any("131072" in name for name in order[-20:-10])


def test_rows_of_one_element_and_outputs_that_are_there_are_verified(setting, monkeypatch):
    monkeypatch.setattr(cuda, "DEVICE", "cpu")
    short = [(case, None) for case in cases.smoke() if case.n == 1]
    there = [(case, torch_providers.OursOut()) for case in cases.smoke_out()]
    assert {case.op for case, _ in short} >= {*PLAIN, "rms_norm_gated", "rms_norm_quantized"}
    assert {case.op for case, _ in there} == {"rms_norm", "layer_norm", "add_rms_norm_inplace"}
    for case, provider in short + there:
        assert set(smoke._verified(setting, case, provider)["errors"]) == set(case.outputs)


@pytest.mark.parametrize(
    ("direction", "n", "changed"),
    [
        ("forward", 16384, {"programs": 1, "stages": 2}),  # programs that stay
        ("forward", 16384, {"programs": 1, "stages": 3}),
        ("forward", 8192, {"programs": 2, "stages": 2}),
        ("forward", 8192, {"programs": 2, "stages": 3}),
        ("forward", 4096, {"registers": 96}),
        ("forward", 4096, {"registers": 128}),
        ("forward", 32768, {"stages": 2}),
        ("backward", 4096, {"stages": 3}),
        ("backward", 4096, {"warps": 16, "programs": 1}),
        ("backward", 128, {"stages": 3}),
        ("backward", 16384, {"stages": 2}),
        ("backward", 32768, {"stages": 2}),  # columns
        ("backward", 32768, {"stages": 3}),  # rows
    ],
)
def test_choices_that_the_sweep_must_try(direction, n, changed):
    case = cases._case("rms_norm", direction, 3, n)
    found = [c for kind in sweep.kinds(case) for c in sweep.candidates(case, kind)]
    defaults = [sweep.default(case, kind) for kind in sweep.kinds(case)]
    # A backward kernel's registers follow from the rest.
    forget = {} if "registers" in changed else {"registers": None}
    assert any(replace(c, **forget) == replace(d, **changed | forget) for c in found for d in defaults)


@pytest.fixture
def launches(setting, monkeypatch):
    """A device of sorts: tensors of a CPU go to launchers that do nothing, and choices of 16 warps do not compile."""
    from rmsnorm import timing
    from rmsnorm.torch.triton import launch
    from rmsnorm_lab.bench import runner

    def launcher(kernel, pointers, wide, constants, choice, device):
        if choice.warps == 16:
            raise launch.NotCompiled("it has 16 warps")
        return lambda *arguments: None

    monkeypatch.setattr(cuda, "DEVICE", "cpu")
    monkeypatch.setattr(cuda, "sample", timing.wall_clock)
    monkeypatch.setattr(cuda, "describe", stage._no_device)
    monkeypatch.setattr(stage.Setting, "plan", setting.plan)
    monkeypatch.setattr(stage.Setting, "synchronize", lambda _: None)
    monkeypatch.setattr(runner, "verify", lambda provider, prepared, *rest: dict.fromkeys((), prepared.call()))
    with build._on_a_cpu(launcher):
        yield stage.Setting(setting.folder, False, setting.elements)


def test_a_choice_that_torch_serves_is_not_timed(launches):
    """torch's operations are right: only the plans tell that no kernel ran."""
    line = sweep._swept(
        launches, cases._case("rms_norm", "forward", 3, 8192), "forward"
    )  # 8 warps, and neighbours of 4 and 16
    assert line["ratios"]
    assert not any("warps=16" in name for name in line["ratios"])
    refused = [why for name, why in line["failed"].items() if "warps=16" in name]
    assert refused
    assert all(why.startswith("NotServed: rmsnorm: torch's") and why.endswith("it has 16 warps") for why in refused)
    default = sweep._swept(launches, cases._case("rms_norm", "forward", 3, 16384), "forward")
    assert default["error"] == "the default choice failed"


def test_a_line_says_whether_kernels_served(launches, monkeypatch):
    from gpu_stages import host, shapes
    from rmsnorm.torch import rms_norm

    monkeypatch.setattr(host, "replayed", lambda *_: 0.0)
    monkeypatch.setattr(host, "CALLS", 2)
    tests = SimpleNamespace(kernel=lambda: rms_norm(torch.ones(2, 64), (64,)), nothing=lambda: None)
    monkeypatch.setitem(sys.modules, "test_gpu", tests)
    for n, wanted in ((4096, True), (16384, False)):  # the longest have 16 warps
        case = cases._case("rms_norm", "forward", 3, n)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert shapes._measured(launches, case, ("rmsnorm",), launches.folder / "r.jsonl")["served"] is wanted
            assert smoke._verified(launches, case)["served"] is wanted
            assert host._timed(launches, case, torch_providers.Ours())["served"] is wanted
    assert "served" not in host._timed(launches, case, torch_providers.TorchRMSNorm())
    assert smoke._test(launches, "kernel") == {"served": True}
    assert smoke._test(launches, "nothing") == {"served": False}


def test_an_item_that_fails_costs_itself_alone(setting, tmp_path):
    def fail():
        raise RuntimeError("no")

    items = [item for i in range(3) for item in [(f"{i}", fail if i == 1 else dict)] * stage.IN_REHEARSAL]
    path = tmp_path / "lines.jsonl"
    assert stage.run("s", items, path, math.inf, 0, setting) == 0
    ended = [line for line in lines(path) if not line.get("begin")]
    assert [line.get("error") for line in ended] == [None, "RuntimeError: no", None]
    assert stage.run("s", items, tmp_path / "late.jsonl", time.monotonic() - 1, 1, setting) == 0
    assert ["not reached" in line["error"] for line in lines(tmp_path / "late.jsonl")] == [True, True]


def test_a_kernel_that_is_left_out_is_told(setting, tmp_path):
    def fall_back():
        warnings.warn("rmsnorm: torch's operations serve these tensors", stacklevel=1)
        return {}

    path = tmp_path / "lines.jsonl"
    stage.run("s", [("a", fall_back)], path, math.inf, 0, setting)
    assert lines(path)[-1]["warned"] == ["rmsnorm: torch's operations serve these tensors"]
    assert "warned: rmsnorm: torch's" in summary.markdown(lines(path))


def test_each_test_of_the_last_stage_has_a_line(tmp_path):
    (tmp_path / "test_a.py").write_text("def test_good(): pass\ndef test_bad(): assert 1 == 2\n")
    path = tmp_path / "lines.jsonl"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "gpu_stages.tests"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tools"), "GPU_SESSION_LINES": str(path)}
    environment.pop("PYTEST_XDIST_WORKER", None)  # of a worker that runs this test
    subprocess.run([*command, "test_a.py"], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert {line["item"]: line.get("error") for line in lines(path)} == {
        "test_a.py::test_good": None,
        "test_a.py::test_bad": "assert 1 == 2",
    }


def test_a_summary_that_fails_costs_the_session_nothing(tmp_path):
    (tmp_path / "session.jsonl").write_text('{"no": "stage"}\n')
    session(tmp_path, tmp_path)._summarise()
    assert "no summary: KeyError" in (tmp_path / "summary.md").read_text()


def test_a_device_that_answers_nothing_ends_the_process(tmp_path):
    class Broken(stage.Setting):
        def synchronize(self):
            raise RuntimeError("an illegal memory access was encountered")

    path = tmp_path / "lines.jsonl"
    assert stage.run("s", [("a", dict), ("b", dict)], path, math.inf, 0, Broken(tmp_path, False, 8)) == stage.STICKY
    (line,) = [line for line in lines(path) if not line.get("begin")]
    assert line["item"] == "a"
    assert "illegal memory access" in line["error"]


PROCESS = """
import json, os, sys, time
path, skip = sys.argv[1], int(sys.argv[2])
def write(**line):
    with open(path, "a") as file: file.write(json.dumps({"stage": "smoke", **line}) + "\\n")
for index, what in enumerate(["fine", "die", "fine", "hang", "fine"]):
    if index < skip: continue
    write(index=index, item=what, begin=True)
    if what == "die": os.abort()
    if what == "hang": time.sleep(600)
    write(index=index, item=what)
"""


def test_a_process_that_dies_or_hangs_is_followed_by_another(tmp_path, monkeypatch):
    own = session(tmp_path, tmp_path)
    own.patience = 2.0
    monkeypatch.setattr(
        own,
        "_process",
        lambda stage, path, skip: subprocess.Popen(
            [sys.executable, "-c", PROCESS, path, str(skip)], start_new_session=True
        ),
    )
    start = time.monotonic()
    own._stage(next(s for s in gpu_session.STAGES if s.name == "smoke"))
    found = {line["index"]: line for line in lines(tmp_path / "session.jsonl")}
    assert time.monotonic() - start < 30
    assert [found[i].get("error", "") for i in (0, 2, 4)] == ["", "", ""]
    assert all("died or hung" in found[i]["error"] for i in (1, 3))
    assert "died or hung" in summary.markdown(list(found.values()))


def test_a_stage_sees_its_end_before_it_is_killed(tmp_path, monkeypatch):
    """Imports take time as well: the end is a time of the clock that all processes share."""
    seen = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: seen.append(command))
    own = session(tmp_path, tmp_path, deadline=gpu_session.WITHIN / 2)
    smoke = next(s for s in gpu_session.STAGES if s.name == "smoke")
    time.sleep(0.1)
    own._process(smoke, tmp_path / "smoke.jsonl", 0)
    assert float(seen[0][seen[0].index("--end") + 1]) == own.start + smoke.until / 2


def test_a_compiler_that_dies_loses_its_kernel_alone(monkeypatch):
    monkeypatch.setattr(build, "_compiled", lambda job, arch: os._exit(3))
    with pytest.raises(RuntimeError, match="the compiler's process ended with 3"):
        build.compile_job((), 90)
    monkeypatch.setattr(build, "_compiled", lambda job, arch: 1 / 0)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        build.compile_job((), 90)
    monkeypatch.setattr(build, "_compiled", lambda job, arch: {"shared": 0})
    assert build.compile_job((), 90) == {"shared": 0}


def test_a_worker_hashes_triton_once(monkeypatch):
    from triton.runtime.cache import triton_key

    monkeypatch.setattr(build, "_compiled", lambda job, arch: {"known": triton_key.cache_info().currsize})
    build._hash_triton.cache_clear()
    triton_key.cache_clear()
    assert build.compile_job((), 90) == {"known": 1}


def test_kernels_that_nobody_waits_for_are_not_compiled(setting, monkeypatch):
    """After the stage's time its items are not called, and the process must end."""
    compiled = []
    monkeypatch.setattr(build, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
    monkeypatch.setattr(build, "compile_job", lambda *job: time.sleep(0.05) or compiled.append(job))
    monkeypatch.setattr(build, "wanted", lambda _: range(100))
    monkeypatch.setattr(build, "named", str)
    monkeypatch.setattr(build, "describe", str)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert len(list(build.items(stage.Setting(setting.folder, False, 8)))) == 100
    assert len(compiled) < 50


DEAD = SimpleNamespace(poll=lambda: 1)


def test_a_stage_that_says_nothing_shows_why(tmp_path, monkeypatch):
    own = session(tmp_path, tmp_path, only=["quack"])
    monkeypatch.setattr(
        own, "_process", lambda stage, path, skip: (tmp_path / "quack.log").write_text("no torch") and DEAD
    )
    own._stage(own.stages[0])
    (line,) = lines(tmp_path / "session.jsonl")
    assert line["error"] == "the stage wrote nothing: no torch"


def test_compiled_modules_that_were_carried_are_linked(tmp_path):
    carried, sources = tmp_path / "gpu-native", tmp_path / "src"
    for name in ("native/_cpu.so", "torch/_nodes.so", "torch/_ops.so"):
        (carried / "rmsnorm" / name).parent.mkdir(parents=True, exist_ok=True)
        (carried / "rmsnorm" / name).write_text("carried")
        (sources / "rmsnorm" / name).parent.mkdir(parents=True, exist_ok=True)
    (sources / "rmsnorm/torch/_nodes.so").write_text("built here")
    (sources / "rmsnorm/torch/_ops.so").symlink_to(tmp_path / "gone")
    gpu_session.link_native(carried, sources)
    found = {path.name: path.read_text() for path in sources.rglob("*.so")}
    assert found == {"_cpu.so": "carried", "_nodes.so": "built here", "_ops.so": "carried"}
    gpu_session.link_native(tmp_path / "nothing", sources)


@pytest.mark.parametrize("deadline", ["0", "-3", "nan"])
def test_a_deadline_must_be_positive(deadline, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu_session.py", "--out", str(tmp_path), "--deadline", deadline])
    with pytest.raises(SystemExit):
        gpu_session.main()
    assert "--deadline must be a positive number" in capsys.readouterr().err
