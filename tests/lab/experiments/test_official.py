"""The data beside which the paper's figures may be shown."""

import pytest

pytest.importorskip("torch")

from rmsnorm_lab.experiments.data.official import is_official
from rmsnorm_lab.experiments.record import Content

SIZES = {
    "images": {"training images": 50_000, "held out": 0, "test images": 10_000},
    "retrieval": {"train images": 113_287, "valid images": 5000, "test images": 5000, "layout": "VSE++"},
    "reading": {"train questions": 380_298, "valid questions": 3924, "test questions": 3198, "layout": "Danqi"},
    "translation": {"direction": "en-de", "train pairs": 4_468_840, "newstest2014 pairs": 3003, "text": "tokenised"},
}
SIZES["transformer"] = SIZES["translation"]


def source(details, stand_in=False):
    return Content(stand_in=stand_in, sha256="", details=details)


@pytest.mark.parametrize("task", SIZES)
def test_the_official_sizes_alone_are_official(task):
    assert is_official(task, source(SIZES[task]))
    assert not is_official(task, source(SIZES[task], stand_in=True))
    for name, value in SIZES[task].items():
        if name in ("layout", "text", "training images", "held out"):
            continue
        other = "de-en" if isinstance(value, str) else value - 1_000_000 if value > 1_000_000 else value - 1
        assert not is_official(task, source({**SIZES[task], name: other}))
    assert not is_official(task, source({}))


def test_cifar10_is_known_by_its_hashes():
    assert not is_official("images", source({**SIZES["images"], "files": "not the official ones"}))


def test_a_users_text_has_no_official_form():
    assert not is_official("language", source({"files": 3, "characters": 10**6}))
