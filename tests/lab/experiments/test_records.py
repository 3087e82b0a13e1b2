"""A record is whole and unedited: it comes back as it was made, and every damage to it is named."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
for _package in ("lightning_fabric", "rich", "matplotlib", "jinja2"):
    pytest.importorskip(_package)

from kept_records import IDENTITY, put, the_file  # noqa: E402
from made_records import run_record, timing_record  # noqa: E402
from rmsnorm_lab.errors import UserError  # noqa: E402
from rmsnorm_lab.experiments import norms, store, tasks  # noqa: E402
from rmsnorm_lab.experiments.jobs import training  # noqa: E402
from rmsnorm_lab.experiments.learner import Setup  # noqa: E402
from rmsnorm_lab.experiments.store import RunStore  # noqa: E402
from rmsnorm_lab.experiments.task import Source  # noqa: E402

PUBLISHED = sorted((Path(__file__).parents[3] / "benchmarks" / "experiments").glob("*/*.jsonl"))


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
        (lambda found: found["result"].update(quality={}), "figures of each and the loss in the curve and in quality"),
        (lambda found: found["result"]["quality"].pop("loss"), "figures of each and the loss"),
        (lambda found: found["result"]["curve"]["valid"].pop("loss"), "figures of each and the loss"),
        (lambda found: found["result"].update(seconds=10**400), "result.seconds must be a number of at most 64 bits"),
        (lambda found: found["result"]["curve"]["step"].append(2**63), "step must be a number of at most 64 bits"),
        (lambda found: found["machine"]["versions"].pop("torch"), "the versions must have torch's"),
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
