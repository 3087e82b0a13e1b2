"""A folder of records for each test, and one page that has everything."""

import pytest

from report_pages import HOSTILE, Folder


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "runs")


@pytest.fixture(scope="session")
def full(tmp_path_factory):
    """Everything that a page can have, and its page. Tests that change it take a copy."""
    folder = Folder(tmp_path_factory.mktemp("full") / "runs")
    for seed, shift in ((0, 0.0), (1, 0.5)):
        for norm, quality in (("none", 9.0), ("batch", 12.0), ("layer", 14.0), ("rms", 15.0), ("prms", 16.0)):
            folder.run(norm, seed, quality + shift, p=0.125 if norm == "prms" else None)
    for p in (0.25, 0.5):
        folder.run("prms", 0, 12.0, p=p)
    folder.run("rms", 0, 77.0, rate=0.5)
    folder.run("layer", 0, None, steps=7)
    folder.run("rms", 0, 5.0, task="unheard-of", name=HOSTILE, stand_in=False, label=HOSTILE)
    for kernels in ("unfused", "rmsnorm", "best"):
        folder.timing(kernels=kernels)
    folder.page()
    return folder


@pytest.fixture(scope="session")
def page(full):
    return (full.path / "report.html").read_text(encoding="utf-8")
