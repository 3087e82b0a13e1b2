"""Prepared data: kept, found again, made again when they must be, by one process of several."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.data import prepared
from rmsnorm_lab.experiments.data.prepared import FOLDER, prepare, temporary

ROWS = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)
LENGTHS = [2, 0, 3, 1]


class Build:
    """Writes arrays piece by piece, and counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, writer, loading):
        self.calls += 1
        writer.append("rows", ROWS[:4])
        writer.append("rows", ROWS[4:])
        writer.append("none", np.zeros((0, 2), np.int32))
        writer.ragged("words", np.arange(5, dtype=np.uint16), np.array(LENGTHS[:3]))
        writer.ragged("words", np.arange(5, 6, dtype=np.uint16), np.array(LENGTHS[3:]))
        return {"words": ["ä", "b"], "call": self.calls}


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.txt").write_text("text")
    return folder


def again(data, build, **settings):
    return prepare("test", data, lambda: [data / "a.txt"], settings, build)


def check(found):
    assert np.array_equal(found.arrays["rows"], ROWS)
    assert found.arrays["none"].shape == (0, 2)
    words = found.ragged("words")
    assert [words[i].tolist() for i in range(len(words))] == [[0, 1], [], [2, 3, 4], [5]]
    assert words.lengths.tolist() == LENGTHS
    assert [row.tolist() for row in map(words.only(words.lengths != 2).__getitem__, range(3))] == [[], [2, 3, 4], [5]]
    assert found.info["words"] == ["ä", "b"]


def kept(data):
    (folder,) = [path for path in (data / FOLDER).iterdir() if path.is_dir()]
    return folder


def test_it_is_made_once_and_found_again(data, capsys):
    build = Build()
    check(again(data, build))
    assert f"kept in {kept(data)}" in capsys.readouterr().err
    found = again(data, build)
    check(found)
    assert build.calls == 1
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="read-only"):
        found.arrays["rows"][0] = 0
    assert (data / "a.txt").read_text() == "text"


def test_other_files_and_settings_are_prepared_apart(data):
    build = Build()
    for settings in ({}, {"longest": 3}, {"longest": 4}, {}):
        again(data, build, **settings)
    assert build.calls == 3
    before = (data / "a.txt").stat()
    (data / "a.txt").write_text("toxt")  # the same size and mtime
    os.utime(data / "a.txt", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert again(data, build).info["call"] == 4
    (data / "part").mkdir()
    (data / "a.txt").rename(data / "part/a.txt")
    assert prepare("test", data, lambda: [data / "part/a.txt"], {}, build).info["call"] == 5


@pytest.mark.parametrize("name", ["rows", "words.lengths", "index.json"])
@pytest.mark.parametrize("how", ["flipped", "short", "absent"])
def test_damage_is_noticed_and_mended(data, capsys, name, how):
    build = Build()
    again(data, build)
    path = kept(data) / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    if how == "absent":
        path.unlink()
    else:
        path.write_bytes(content if how == "flipped" else content[:-4])
    capsys.readouterr()
    check(again(data, build))
    said = capsys.readouterr().err
    assert build.calls == 2
    assert said.count(f"{path} is damaged") == ((name, how) != ("index.json", "absent"))
    check(again(data, build))
    assert build.calls == 2


def fail(path, number, monkeypatch):
    """Make every write under ``path`` fail with this system error."""
    write, mkdir = prepared.Writer._write, Path.mkdir

    def failing_write(self, name, content):
        if self.folder.is_relative_to(path) and number == errno.ENOSPC:
            raise OSError(number, os.strerror(number), str(self.folder / name))
        write(self, name, content)

    def failing_mkdir(self, *args, **kwargs):
        if self.is_relative_to(path) and number == errno.EACCES:
            raise OSError(number, os.strerror(number), str(self))
        mkdir(self, *args, **kwargs)

    monkeypatch.setattr(prepared.Writer, "_write", failing_write)
    monkeypatch.setattr(Path, "mkdir", failing_mkdir)


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC])
def test_where_the_data_lie_nothing_can_be_kept(data, tmp_path, monkeypatch, capsys, number):
    fail(data, number, monkeypatch)
    build = Build()
    check(again(data, build))
    assert f"{FOLDER} cannot keep the prepared data of {data}: {os.strerror(number)}" in capsys.readouterr().err
    check(again(data, build))
    assert build.calls == 1 + (number == errno.ENOSPC)
    assert list((tmp_path / "home/rmsnorm").glob("test-*/rows"))
    assert not list(data.rglob("rows"))


def test_where_nothing_can_be_kept_it_is_prepared_each_time(data, tmp_path, monkeypatch, capsys):
    fail(data, errno.EACCES, monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(data / "home"))
    build = Build()
    check(again(data, build))
    assert "are not kept; they will be prepared again" in capsys.readouterr().err
    check(again(data, build))
    assert build.calls == 2
    monkeypatch.setattr(prepared.tempfile, "tempdir", str(tmp_path))
    fail(tmp_path, errno.ENOSPC, monkeypatch)
    with pytest.raises(UserError, match=r"there must be room for the prepared data; .*rows: No space left on device"):
        again(data, build)


def test_what_fails_leaves_nothing(data):
    def build(writer, loading):
        writer.append("rows", ROWS)
        raise UserError("line 3 is wrong")

    with pytest.raises(UserError, match="line 3 is wrong"):
        again(data, build)
    assert [path.name.endswith(".lock") for path in (data / FOLDER).iterdir()] == [True]


def test_files_that_change_meanwhile_are_refused(data):
    def build(writer, loading):
        (data / "a.txt").write_text("longer text")
        return {}

    with pytest.raises(UserError, match="'data' were changed while they were read"):
        again(data, build)
    assert again(data, Build()).info["call"] == 1


def test_what_a_killed_process_left_is_replaced(data):
    again(data, Build())
    folder = kept(data)
    part = folder.with_name(f".{folder.name}.part")
    folder.rename(part)
    (part / "index.json").unlink()
    (part / "rows").write_bytes(b"half")
    check(again(data, Build()))
    assert not part.exists()


SLOW = """
import sys, time
from pathlib import Path
from rmsnorm_lab.experiments.data.prepared import prepare
import numpy as np
data = Path(sys.argv[1])
def build(writer, loading):
    with open(data / "made", "a") as file:
        file.write("x")
    time.sleep(1)
    writer.append("rows", np.arange(3))
    return {}
print(prepare("test", data, lambda: [data / "a.txt"], {}, build).arrays["rows"].tolist())
"""


def test_of_several_processes_one_prepares(data):
    command = [sys.executable, "-c", SLOW, str(data)]
    ranks = [{**os.environ, "LOCAL_RANK": str(rank)} for rank in range(3)]
    running = [
        subprocess.Popen(command, env=rank, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for rank in ranks
    ]
    said = [process.communicate(timeout=120) for process in running]
    assert [out for out, _ in said] == ["[0, 1, 2]\n"] * 3
    assert (data / "made").read_text() == "x"
    assert "".join(err for _, err in said[1:]).count("another process is preparing it") == 0


def test_a_temporary_one_outlives_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared.tempfile, "tempdir", str(tmp_path))
    found = temporary(Build())
    assert not list(tmp_path.iterdir())
    check(found)


def test_steps_are_told_line_by_line_where_there_is_no_terminal(data, monkeypatch, capsys):
    monkeypatch.setattr("rmsnorm_lab.experiments.data.loading.SECONDS", 0.05)

    def build(writer, loading):
        for _ in loading.over("reading", range(3), 3):
            time.sleep(0.1)
        return {}

    again(data, build)
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("data: reading 1 of 3 · 0:0") for line in lines), lines
