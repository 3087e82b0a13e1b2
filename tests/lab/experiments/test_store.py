"""The folder of records: one process writes to it, records are found by what identifies them, files are set aside."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

pytest.importorskip("torch")
for _package in ("lightning_fabric", "rich", "matplotlib", "jinja2"):
    pytest.importorskip(_package)

from kept_records import IDENTITY, put, the_file  # noqa: E402
from rmsnorm.cli import main  # noqa: E402
from rmsnorm_lab import files  # noqa: E402
from rmsnorm_lab.errors import UserError  # noqa: E402
from rmsnorm_lab.experiments import store  # noqa: E402
from rmsnorm_lab.experiments.store import RunStore, file_name  # noqa: E402
from tiny_runs import TINY, corpus  # noqa: E402


def test_what_is_kept_is_found_again_by_its_settings_alone(tmp_path):
    kept = put(tmp_path)
    found = RunStore(tmp_path).get("language", IDENTITY)
    assert found == kept
    assert found.result.quality["bits"] == 2.25
    assert RunStore(tmp_path).get("language", replace(IDENTITY, seed=4)) is None
    assert store.load(tmp_path) == [kept]


def test_file_names_tell_the_run_and_differ_with_any_setting():
    name = file_name("language", IDENTITY)
    assert name.startswith("language-rms-seed3-")
    assert name != file_name("language", replace(IDENTITY, train=replace(IDENTITY.train, steps=6)))
    several = file_name("language", replace(IDENTITY, processes="ddp2"))
    assert several == name.replace(".jsonl", "-ddp2.jsonl")


def test_a_file_that_was_set_aside_is_never_replaced(tmp_path):
    for content in "abc":
        (tmp_path / "x.jsonl").write_text(content)
        store.set_aside(tmp_path)
    aside = {path.name: path.read_text() for path in (tmp_path / "aside").iterdir()}
    assert aside == {"x.jsonl": "a", "x.1.jsonl": "b", "x.2.jsonl": "c"}


def test_what_cannot_be_read_is_said_and_set_aside(tmp_path):
    kept = put(tmp_path)
    (tmp_path / "link.jsonl").symlink_to("nowhere")
    (tmp_path / "d.jsonl").mkdir()
    for name, reason in (("link", "No such file or directory"), ("d", "Is a directory")):
        with pytest.raises(UserError, match=rf"{name}\.jsonl, line 1: .* cannot be read \({reason}\). Move the file"):
            store.read(tmp_path / f"{name}.jsonl")
    store.set_aside(tmp_path)
    assert {path.name for path in (tmp_path / "aside").iterdir()} == {"link.jsonl", "d.jsonl"}
    assert store.load(tmp_path) == [kept]


@pytest.mark.parametrize(
    ("out", "what"),
    [
        ("/dev/null", "'/dev/null' is a device or a pipe"),
        ("plain", "plain' is a file"),
        ("plain/in/it", "plain' is a file"),
        ("link", "link' is a link to 'nowhere', which does not exist"),
    ],
)
def test_what_lies_where_the_folder_would_be_is_said(tmp_path, out, what):
    (tmp_path / "plain").write_text("kept")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UserError) as raised, store.opened(tmp_path / out):
        pass
    assert what in str(raised.value)
    assert "File exists" not in str(raised.value)
    assert (tmp_path / "plain").read_text() == "kept"


def test_a_record_under_the_name_of_another_is_refused(tmp_path):
    put(tmp_path)
    path = the_file(tmp_path)
    path.rename(tmp_path / file_name("language", replace(IDENTITY, seed=4)))
    with pytest.raises(UserError, match="do not match its file's name"):
        RunStore(tmp_path).get("language", replace(IDENTITY, seed=4))


def test_bad_files_are_all_named_block_nobody_else_and_can_be_set_aside(tmp_path, capsys):
    for seed in range(3):
        put(tmp_path, seed)
    good = put(tmp_path, 3)
    bad = [tmp_path / file_name("language", replace(IDENTITY, seed=seed)) for seed in range(3)]
    for path in bad:
        path.write_text("{}\n")
    (tmp_path / "foreign.jsonl").write_text("not ours")
    with pytest.raises(UserError) as raised:
        store.load(tmp_path)
    assert all(str(path) in str(raised.value) for path in bad)
    assert "foreign.jsonl" in str(raised.value)
    assert f"rmsnorm report --set-aside {tmp_path}" in str(raised.value)
    assert RunStore(tmp_path).get("language", IDENTITY) == good
    assert store.set_aside(tmp_path) == [
        tmp_path / "aside" / path.name for path in [tmp_path / "foreign.jsonl", *sorted(bad)]
    ]
    assert store.load(tmp_path) == [good]
    assert (tmp_path / "aside" / "foreign.jsonl").read_text() == "not ours"


def test_an_unfinished_write_leaves_the_record_as_it_was(tmp_path, monkeypatch):
    before = put(tmp_path)

    def killed(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            put(tmp_path, bits=9.0)
    assert store.load(tmp_path) == [before]
    assert [path.name for path in tmp_path.iterdir()] == [the_file(tmp_path).name]


HOLDER = """
import sys, time
from pathlib import Path
from rmsnorm_lab.experiments.store import opened
with opened(Path(sys.argv[1])):
    print("open", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_has_ended_by_a_kill_too(tmp_path):
    (tmp_path / ".old.jsonl.77.tmp").touch()
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "open\n"
        refused = f"no other rmsnorm writes to; process {holder.pid} writes to"
        with pytest.raises(UserError, match=refused), store.opened(tmp_path):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    for _ in range(2):  # in one process again and again
        with store.opened(tmp_path):
            assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_the_lock_is_the_commands(tmp_path, capsys):
    with store.opened(tmp_path / "runs"):
        for command in (["train", "language", "--norm", "rms"], ["compare", "language"]):
            assert main([*command, "--out", str(tmp_path / "runs"), "--data", "nowhere"]) == 2
            assert f"process {os.getpid()} writes to" in capsys.readouterr().err  # said before data are looked for


def test_a_folder_that_was_closed_is_refused_before_work(tmp_path, monkeypatch):
    with store.opened(tmp_path):
        pass

    def closed(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store.tempfile, "TemporaryFile", closed)  # root may write everywhere
    with (
        pytest.raises(UserError, match="--out must be a folder that can be written and locked"),
        store.opened(tmp_path),
    ):
        pass


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_the_name_of_the_data_is_no_part_of_a_run(tmp_path, capsys, set_threads, kind):
    set_threads(1)
    (tmp_path / "first").mkdir()
    path = corpus(tmp_path / "first")
    if kind == "file":
        path.rename(tmp_path / "only")
        path.parent.rmdir()
        (tmp_path / "only").rename(tmp_path / "first")
    rest = ["--out", str(tmp_path / "runs"), "--threads", "1", "--steps", "2", "--set", *TINY]
    command = ["train", "language", "--norm", "rms", "--data"]
    assert main([*command, str(tmp_path / "first"), *rest]) == 0
    assert json.loads(the_file(tmp_path / "runs").read_text())["source_name"] == "first"
    (tmp_path / "first").rename(tmp_path / "second")
    assert main([*command, str(tmp_path / "second"), *rest]) == 0
    assert "recorded in" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "second"), *rest, "train.batch=8"]) == 0
    assert len(list((tmp_path / "runs").glob("*.jsonl"))) == 2


def test_compare_and_torchrun_do_not_go_together(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["compare", "language", "--out", str(tmp_path)]) == 2
    assert "compare works in one process; got 2" in capsys.readouterr().err
