"""Files of results: whole or as they were, through links, into devices; a full disk is one sentence with the name."""

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rmsnorm import cli
from rmsnorm_lab import errors
from rmsnorm_lab.errors import UserError
from rmsnorm_lab.files import append_whole, check_output, named, remove_unfinished, write_whole


@pytest.fixture
def limited():
    """No file of this process can grow beyond 100,000 bytes: what a full disk is to a program, without one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 100 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder)], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_file_is_written_through_a_link_which_stays(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "page", tmp_path / "link"
    link.symlink_to(target)
    for content in (b"one", b"two"):  # the first time nothing is there yet
        write_whole(link, content)
        assert link.is_symlink()
        assert target.read_bytes() == content
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["elsewhere", "link", "page"]


def test_what_is_no_file_is_written_into(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE) as reader:
        try:
            write_whole(pipe, b"all of it")
            assert reader.communicate(timeout=10)[0] == b"all of it"
        finally:
            reader.kill()  # where nothing was written, it would wait for ever
    assert pipe.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_device_that_takes_nothing_is_named(device_without_room):
    for write in (write_whole, append_whole):
        with pytest.raises(UserError, match=r"/full must be writable, and is not: No space left"):
            write(device_without_room, b"x")
    assert device_without_room.is_char_device()


def test_a_reader_that_went_away_is_no_error_of_the_file():
    """The commands end quietly then, as others in a pipe do."""
    read, write = os.pipe()
    os.close(read)
    with pytest.raises(BrokenPipeError):
        write_whole(Path(f"/dev/fd/{write}"), b"x")
    os.close(write)


def tensors(file):
    torch.save({"weight": torch.zeros(100_000)}, file)  # 400,000 bytes; its error hides the system's


@pytest.mark.parametrize("content", [b"x" * 200_000, tensors])
@pytest.mark.parametrize("place", ["limited", "full_disk"])
def test_without_room_the_file_stays_as_it_was(tmp_path, request, place, content):
    folder = request.getfixturevalue(place) or tmp_path
    path = folder / "result"
    write_whole(path, b"before")
    with pytest.raises(UserError, match=r"result must be writable, and is not: (No space|File too)"):
        write_whole(path, content)
    assert path.read_bytes() == b"before"
    assert [each.name for each in folder.iterdir()] == ["result"]


def test_a_line_is_appended_or_not(tmp_path, limited):
    path = tmp_path / "lines"
    line = b"x" * 59_999 + b"\n"
    append_whole(path, line)
    with pytest.raises(UserError, match="lines must be writable"):
        append_whole(path, line)
    assert path.read_bytes() == line


def test_what_a_kill_left_is_removed_and_nothing_else(tmp_path):
    source = f"""
import os, signal
from pathlib import Path
from rmsnorm_lab.files import write_whole
write_whole(Path({str(tmp_path)!r}) / "run.pt", lambda file: os.kill(os.getpid(), signal.SIGKILL))
"""
    subprocess.run([sys.executable, "-c", source], check=False)
    (left,) = tmp_path.iterdir()
    for other in ("run.pt", ".run.pt", ".page.html.1.tmp"):
        (tmp_path / other).touch()
    remove_unfinished(tmp_path, ".pt")
    assert not left.exists()
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("name", "what"),
    [("folder", "is a folder"), ("none/page", "a folder that exists"), ("closed/page", "a folder that can be written")],
)
def test_a_file_that_could_not_be_written_is_refused_beforehand(tmp_path, monkeypatch, name, what):
    (tmp_path / "folder").mkdir()
    (tmp_path / "closed").mkdir(mode=0o555)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "closed" not in str(path) and access(path, mode))  # root may
    with pytest.raises(UserError, match=f"--out must .*{what}"):
        check_output("--out", tmp_path / name)


def test_files_that_can_be_written_are_not_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "page")
    for path in (tmp_path / "page", tmp_path / "link", Path("/dev/null")):
        check_output("--out", path)


@pytest.mark.parametrize("text", ["", "-"])
def test_no_name_is_refused_by_every_command(text, capsys):
    with pytest.raises(argparse.ArgumentTypeError, match="must name a file or a folder"):
        named(text)
    for command in (
        ["train", "language", "--norm", "rms", "--data", text],
        ["compare", "language", "--out", text],
        ["report", text],
        ["report", "--out", text],
        ["invariance", "--plot", text],
        ["bench", "--json", text],
    ):
        with pytest.raises(SystemExit, match="2"):
            cli.main(command)
        assert f"must name a file or a folder; got {text!r}" in capsys.readouterr().err


def test_memory_that_is_not_there_is_one_sentence():
    for ask in (lambda: torch.empty(10**15), lambda: torch.empty(10**11, 10**11), lambda: bytearray(10**18)):
        with pytest.raises((RuntimeError, MemoryError)) as raised:
            ask()
        assert "the work must fit in memory, and it does not" in errors.sentence(raised.value, "train")
    assert errors.sentence(RuntimeError("another"), "train") is None


def test_characters_that_the_output_lacks_are_shown_as_escapes():
    done = subprocess.run(
        [sys.executable, "-m", "rmsnorm.cli", "invariance", "--trials", "1"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"\\u2713" in done.stdout  # a tick
