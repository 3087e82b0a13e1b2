"""Captioned images in three layouts, and every way in which the files can be wrong; the stand-in."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from rmsnorm.errors import UserError
from rmsnorm.experiments.data import captions, digit_scenes

SIZES = {"train": 6, "valid": 3, "test": 4}
WIDTH = 8


def features(split):
    return np.random.default_rng(len(split)).normal(size=(SIZES[split], WIDTH)).astype(np.float32)


def write(folder, layout, repeat=1):
    for split, (text, images) in captions.LAYOUTS[layout].items():
        (folder / images).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / images, features(split).repeat(repeat, axis=0))
        lines = [f"a {split} caption {n} ü" for n in range(5 * SIZES[split])]
        (folder / text).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("repeat", [1, 5])
@pytest.mark.parametrize("layout", captions.LAYOUTS)
def test_every_layout_gives_the_same(tmp_path, layout, repeat):
    found = captions.load(write(tmp_path, layout, repeat))
    assert found.layout == layout
    for split, size in SIZES.items():
        expected = features(split) / np.sqrt((features(split) ** 2).sum(1, keepdims=True))
        np.testing.assert_allclose(found.splits[split].images, expected, rtol=1e-6)
        assert found.splits[split].images.dtype == np.float32
        assert len(found.splits[split].captions) == 5 * size
        assert found.splits[split].captions[7] == ["a", split, "caption", "7", "ü"]


def test_vendrovs_folder_above_is_understood(tmp_path):
    assert captions.load(write(tmp_path / "coco", "Vendrov").parent).layout == "Vendrov"


def test_the_hash_follows_the_content(tmp_path):
    first = captions.load(write(tmp_path, "Kiros")).sha256
    assert captions.load(tmp_path).sha256 == first
    path = tmp_path / "coco_dev_caps.txt"
    path.write_text(path.read_text(encoding="utf-8").replace("caption 3", "caption three"), encoding="utf-8")
    assert captions.load(tmp_path).sha256 != first


def damage(name, change):
    def apply(folder):
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return apply


def replace_array(name, array):
    return lambda folder: np.save(folder / name, array)


def one_wrong_row(value):
    rows = features("test")
    rows[2] = value
    return rows


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "dev_ims.npy").unlink(), "in VSE.*'s layout lacks dev_ims.npy"),
        (damage("dev_ims.npy", lambda b: b[:-8]), "dev_ims.npy' must be a .npy array"),
        (damage("dev_ims.npy", lambda b: b"not an array"), "dev_ims.npy' must be a .npy array"),
        (replace_array("test_ims.npy", np.zeros((4, 8, 1), np.float32)), r"test_ims.npy' .*float32 \(4, 8, 1\)"),
        (replace_array("test_ims.npy", np.ones((4, 8), np.int64)), r"test_ims.npy' .*int64 \(4, 8\)"),
        (replace_array("test_ims.npy", np.array([[None]])), "test_ims.npy' must be a .npy array: Object arrays"),
        (replace_array("test_ims.npy", one_wrong_row(0)), "test_ims.npy', row 2: .*its norm is 0.0"),
        (replace_array("test_ims.npy", one_wrong_row(np.nan)), "test_ims.npy', row 2: .*its norm is nan"),
        (replace_array("test_ims.npy", np.ones((4, 9), np.float32)), "must have one width, have .*'test': 9"),
        (
            replace_array("test_ims.npy", np.ones((20, 8), np.float32) * np.arange(1, 21)[:, None]),
            "rows 0 to 4 are not",
        ),
        (
            damage("train_caps.txt", lambda b: b.replace(b"caption 9", b"caption \xe9")),
            "train_caps.txt, line 10: .*UTF-8",
        ),
        (damage("train_caps.txt", lambda b: b"\n".join(b.split(b"\n")[1:])), "30 lines for 6 rows, has 29"),
        (damage("train_caps.txt", lambda b: b.rstrip(b"\n")), "train_caps.txt, line 30: .*cut short"),
        (damage("train_caps.txt", lambda b: b.replace("a train caption 4 ü".encode(), b"")), "line 5: .* is empty"),
    ],
)
def test_wrong_files_are_refused(tmp_path, spoil, message):
    spoil(write(tmp_path, "VSE++"))
    with pytest.raises(UserError, match=message):
        captions.load(tmp_path)


def test_no_layout_at_all(tmp_path):
    with pytest.raises(UserError, match=r"one of the layouts Vendrov: .*Kiros: coco_train_caps.txt.*in none of them"):
        captions.load(tmp_path)


def test_scenes_are_held_out_by_combination_and_told_truly(tmp_path):
    counts = {"train": 60, "valid": 20, "test": 30}
    name = digit_scenes.write(tmp_path, counts)
    assert name.startswith("scenes of scikit-learn")
    found = captions.load(tmp_path)
    value = {word: digit for digit, word in enumerate(digit_scenes.WORDS)}
    seen = []
    for split, size in counts.items():
        assert found.splits[split].images.shape == (size, 256)
        for i in range(size):
            five = found.splits[split].captions[5 * i : 5 * i + 5]
            told = [[value[word] for word in caption if word in value] for caption in five]
            a, b, c, d = places = tuple(told[0])
            assert told[1] == [a, b, c, d]
            assert told[2] == [a, c, b, d]
            count = 3 if digit_scenes.EMPTY in places else 4
            assert told[3] == [count, a, d]
            assert told[4] == [count, b, c]
            seen.append(places)
            cells = found.splits[split].images[i].reshape(2, 8, 2, 8).transpose(0, 2, 1, 3).reshape(4, 64)
            assert [digit == digit_scenes.EMPTY for digit in places] == [not cell.any() for cell in cells]
    assert len(set(seen)) == len(seen)

    again = tmp_path / "again"
    again.mkdir()
    digit_scenes.write(again, counts)
    assert captions.load(again).sha256 == found.sha256
