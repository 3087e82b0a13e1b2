"""The benchmark's records, and what is shown of them."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from rmsnorm_lab import machine

torch = pytest.importorskip("torch")
pytest.importorskip("rich")

from bench_calls import SMALL, bench  # noqa: E402
from rmsnorm_lab.bench import case_tables, records  # noqa: E402


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


def test_machine_is_publishable():
    about = machine.describe()
    text = json.dumps(asdict(about))
    assert about.threads >= 1
    assert about.versions["numpy"]
    home, host = os.path.expanduser("~"), os.uname().nodename
    assert home not in text or len(home) < 3
    assert host not in text or len(host) < 4
    assert (about.commit is None) == (about.dirty is None)


def test_the_allocator_is_recorded_without_its_folder(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "/home/somebody/libjemalloc.so.2:/usr/lib/libgomp.so.1 libother.so")
    monkeypatch.setenv("MALLOC_CONF", "thp:always")
    machine.describe.cache_clear()
    found = machine.describe().environment
    machine.describe.cache_clear()
    assert found["LD_PRELOAD"] == "libjemalloc.so.2 libgomp.so.1 libother.so"
    assert found["MALLOC_CONF"] == "thp:always"
