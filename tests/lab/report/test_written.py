"""Where the report is written, and what stops it."""

import os
import shutil
import subprocess

import pytest

torch = pytest.importorskip("torch")
for _package in ("lightning_fabric", "rich", "matplotlib", "jinja2"):
    pytest.importorskip(_package)
from rmsnorm.cli import main  # noqa: E402


def test_the_same_records_make_the_same_page_wherever_it_is_written(full, page, tmp_path, capsys):
    assert main(["report", str(full.path), "--out", str(tmp_path / "page.html")]) == 0
    assert "18 records" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page


def test_the_page_goes_through_links_and_into_devices(full, page, tmp_path, capsys, device_without_room):
    link = tmp_path / "link.html"
    link.symlink_to(tmp_path / "target.html")
    assert main(["report", str(full.path), "--out", str(link)]) == 0
    assert link.is_symlink()
    assert (tmp_path / "target.html").read_text(encoding="utf-8") == page
    capsys.readouterr()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = tmp_path / "read"
    with read.open("wb") as file, subprocess.Popen(["cat", str(pipe)], stdout=file) as reader:
        try:
            status = main(["report", str(full.path), "--out", str(pipe)])
            reader.wait(10)
        finally:
            reader.kill()  # where nothing was written, it would wait for ever
    assert status == 0
    assert read.read_text(encoding="utf-8") == page
    assert capsys.readouterr().out == ""  # it may be standard output
    assert main(["report", str(full.path), "--out", str(device_without_room)]) == 2
    assert f"{device_without_room} must be writable, and is not: No space left on device" in capsys.readouterr().err
    assert device_without_room.is_char_device()


def test_wrong_use_is_said_and_leaves_nothing(full, tmp_path, capsys):
    shutil.copytree(full.path, tmp_path / "runs")
    (tmp_path / "runs" / "report.html").unlink()
    (tmp_path / "empty").mkdir()
    for flags, said in (
        ([str(tmp_path / "none")], "RUNS must be a folder of records"),
        ([str(tmp_path / "empty")], "holds no records"),
        ([str(tmp_path / "runs"), "--out", str(tmp_path / "no" / "page.html")], "a folder that exists"),
    ):
        assert main(["report", *flags]) == 2
        assert said in capsys.readouterr().err
    assert not list((tmp_path / "empty").iterdir())
    torn = next((tmp_path / "runs").glob("images-rms-*"))
    torn.write_text(torn.read_text()[:100])
    assert main(["report", str(tmp_path / "runs")]) == 2
    assert torn.name in capsys.readouterr().err
    assert not (tmp_path / "runs" / "report.html").exists()
    assert main(["report", str(tmp_path / "runs"), "--set-aside"]) == 0
    said = capsys.readouterr()
    assert f"set aside: {tmp_path / 'runs' / 'aside' / torn.name}" in said.err
    assert "17 records" in said.out
