"""Records: whole, unedited, found by what identifies them; a folder that one process writes to; files set aside."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
for _package in ("lightning_fabric", "rich", "matplotlib", "jinja2"):
    pytest.importorskip(_package)

from made_records import run_identity, run_record, timing_record  # noqa: E402
from rmsnorm.cli import main  # noqa: E402
from rmsnorm_lab import files  # noqa: E402
from rmsnorm_lab.errors import UserError  # noqa: E402
from rmsnorm_lab.experiments import norms, store, tasks  # noqa: E402
from rmsnorm_lab.experiments.jobs import training  # noqa: E402
from rmsnorm_lab.experiments.learner import Setup  # noqa: E402
from rmsnorm_lab.experiments.store import RunStore, file_name  # noqa: E402
from rmsnorm_lab.experiments.task import Source  # noqa: E402
from tiny_runs import TINY, corpus  # noqa: E402

IDENTITY = run_identity("rms", 3)
PUBLISHED = sorted((Path(__file__).parents[3] / "benchmarks" / "experiments").glob("*/*.jsonl"))


def put(folder, seed=3, bits=2.25):
    record = run_record("rms", seed, bits)
    RunStore(folder).put(record)
    return record


@pytest.mark.skipif(not PUBLISHED, reason="the records are no part of the source distribution")
def test_every_published_record_is_read_and_written_the_same():
    assert len(PUBLISHED) > 200
    for path in PUBLISHED:
        assert store.line_of(store.read(path)).encode() == path.read_bytes()


@pytest.mark.skipif(not PUBLISHED, reason="the records are no part of the source distribution")
@pytest.mark.parametrize("task", tasks.TASKS)
def test_the_small_recipe_still_names_the_published_runs(task):
    there = {path.name for path in PUBLISHED}
    of = store.read(next(path for path in PUBLISHED if path.name.startswith(f"{task}-rms-seed0"))).identity.source
    source = Source("", of.stand_in, of.sha256, of.details)
    for norm in norms.by_default(task):
        for seed in range(3):
            job = training(SimpleNamespace(name=task, recipe=tasks.recipe(task), source=source), Setup(), norm, seed)
            assert f"{job.stem}.jsonl" in there, (norm, seed)


@pytest.mark.parametrize("record", [run_record(), run_record(quality=None), timing_record({"rms": [1.0, 2]})])
def test_a_record_comes_back_as_it_was_made(tmp_path, record):
    path = RunStore(tmp_path).put(record)
    assert store.read(path) == record
    assert store.line_of(store.read(path)).encode() == path.read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found.pop("machine"), "lacks the field 'machine'"),
        (lambda found: found.update(more=1), "unknown field 'more'"),
        (lambda found: found["result"]["curve"].pop("step"), "result.curve lacks the field 'step'"),
        (lambda found: found["identity"].update(seed="3"), "identity.seed must be int; got '3'"),
        (lambda found: found["identity"].update(seed=True), "identity.seed must be int; got True"),
        (
            lambda found: found["identity"]["train"].update(betas=[0.9]),
            "train.betas must have 2 values; got 1",
        ),
        (lambda found: found["result"].update(quality=[2.5]), "result.quality must be dict"),
        (lambda found: found["result"].update(quality={}), "a figure of each in the curve and in quality"),
        (lambda found: found["result"].update(metrics=[]), "result must have a metric"),
        (lambda found: found["result"]["curve"]["seconds"].pop(), "the curve must have columns of one length"),
        (lambda found: found.update(kind="walk"), "walk"),
        (lambda found: found.update(kind=[]), "unhashable"),
    ],
)
def test_a_record_of_other_fields_is_refused_even_if_its_digest_is_right(tmp_path, change, said):
    path = RunStore(tmp_path).put(run_record())
    found = json.loads(path.read_text())
    del found["digest"]
    change(found)
    found["digest"] = store._hash(found)
    path.write_text(json.dumps(found) + "\n")
    with pytest.raises(UserError, match="this program did not write it") as raised:
        store.read(path)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda result: result["milliseconds"].pop("rms"), "must be of the same norms"),
        (lambda result: [part.pop("rms") for part in result.values()], "must be of the identity's norms"),
        (lambda result: [part.clear() for part in result.values()], "must be of the same norms"),
        (lambda result: result["milliseconds"]["rms"].pop(), "the times must have columns of one length"),
        (lambda result: result["milliseconds"].update(rms=[1.0, 0.0]), "the times must be above 0"),
    ],
)
def test_a_timing_that_does_not_agree_with_itself_is_refused(tmp_path, change, said):
    path = RunStore(tmp_path).put(timing_record({"layer": [2.0, 2.0], "rms": [1.0, 1.0]}))
    found = json.loads(path.read_text())
    del found["digest"]
    change(found["result"])
    found["digest"] = store._hash(found)
    path.write_text(json.dumps(found) + "\n")
    with pytest.raises(UserError, match="this program did not write it") as raised:
        store.read(path)
    assert said in str(raised.value)


def the_file(folder):
    (path,) = folder.glob("*.jsonl")
    return path


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


def paths_of(value, path=()):
    """Every way into a nested value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths_of(inner, (*path, key))


def changed(record, path):
    *way, last = path
    inner = record
    for key in way:
        inner = inner[key]
    inner[last] = 0.001 if inner[last] != 0.001 else "other"
    return record


def test_no_field_can_be_edited_or_removed(tmp_path):
    """Each field and each element in turn, also those that nothing reads."""
    put(tmp_path)
    path = the_file(tmp_path)
    content = path.read_bytes()
    ways = [way for way in paths_of(json.loads(content)) if way]
    assert len(ways) > 25
    for way in ways:
        for removed in (False, True):
            record = json.loads(content)
            if not removed:
                changed(record, way)
            elif len(way) == 1:
                del record[way[0]]
            else:
                continue
            path.write_text(json.dumps(record) + "\n")
            with pytest.raises(UserError, match=r"digest|schema|this program's"):
                store.load(tmp_path)
    path.write_bytes(content)
    assert store.load(tmp_path)


def damage(content, how):
    return {
        "torn": content[: len(content) // 2],
        "no newline": content.rstrip(b"\n"),
        "two lines": content + content,
        "binary": b"\xff\xfe" + content,
        "another schema": content.replace(b'"schema":3', b'"schema":2'),
        "nan": content.replace(b"2.25", b"NaN"),
        "a number twice": content.replace(b'"bits":2.25', b'"bits":2.25,"bits":0.5'),
        "deep": b"[" * 200_000 + b"\n",
        "empty": b"",
        "of something else": b'{"schema":3,"digest":"x"}\n',
    }[how]


@pytest.mark.parametrize(
    ("how", "line", "what"),
    [
        ("torn", 1, "cannot be read"),
        ("no newline", 1, "its end is missing"),
        ("two lines", 2, "something follows"),
        ("binary", 1, "cannot be read"),
        ("another schema", 1, "schema 2 and this version reads 3"),
        ("nan", 1, "this program did not write it"),
        ("a number twice", 1, "it was edited"),
        ("deep", 1, "cannot be read"),
        ("empty", 1, "cannot be read"),
        ("of something else", 1, "it was edited"),
    ],
)
def test_a_damaged_record_is_named_and_never_used(tmp_path, how, line, what):
    put(tmp_path)
    path = the_file(tmp_path)
    path.write_bytes(damage(path.read_bytes(), how))
    for read in (store.load, lambda folder: RunStore(folder).get("language", IDENTITY)):
        with pytest.raises(UserError, match=what) as raised:
            read(tmp_path)
        assert f"{path}, line {line}: " in str(raised.value)
        assert "Delete the file" in str(raised.value)


@pytest.mark.parametrize("content", ["[1]\n", '{"text": "mine"}\n', '{"a": 1}\n{"a": 2}\n', "null\n", "not JSON"])
def test_a_file_that_is_no_record_is_not_to_be_deleted(tmp_path, content):
    folder = tmp_path / "a folder; echo"
    folder.mkdir()
    path = folder / "mine.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match="this is not a record of rmsnorm") as raised:
        store.load(folder)
    assert "Delete" not in str(raised.value)
    assert str(raised.value).endswith(f"--set-aside '{folder}'")


def test_a_file_that_was_set_aside_is_never_replaced(tmp_path):
    for content in "abc":
        (tmp_path / "x.jsonl").write_text(content)
        store.set_aside(tmp_path)
    aside = {path.name: path.read_text() for path in (tmp_path / "aside").iterdir()}
    assert aside == {"x.jsonl": "a", "x.1.jsonl": "b", "x.2.jsonl": "c"}


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
