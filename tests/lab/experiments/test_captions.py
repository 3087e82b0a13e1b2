"""Captioned images in three layouts, and every way in which the files can be wrong, and the stand-in."""

import hashlib
from functools import partial

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.data import captions, digit_scenes
from rmsnorm_lab.experiments.data import features as features_module
from rmsnorm_lab.experiments.data.lines import digest
from rmsnorm_lab.experiments.data.prepared import temporary

SIZES = {"train": 6, "valid": 3, "test": 4}
WIDTH = 8


def prepared(folder):
    return temporary(partial(captions.build, captions.find(folder)))


def said(found, split):
    """The captions as words, with "?" for words that are not in the training captions."""
    words = ["", "?", *found.info["words"]]
    rows = found.ragged(f"{split}.captions")
    return [[words[i] for i in rows[row]] for row in range(len(rows))]


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
    write(tmp_path, layout, repeat)
    assert captions.find(tmp_path).layout == layout
    found = prepared(tmp_path)
    for split, size in SIZES.items():
        expected = features(split) / np.sqrt((features(split) ** 2).sum(1, keepdims=True))
        images = found.arrays[f"{split}.images"]
        np.testing.assert_allclose(images, expected, rtol=1e-6)
        assert images.dtype == np.float32
        assert len(said(found, split)) == 5 * size
        assert said(found, split)[7] == ["a", split if split == "train" else "?", "caption", "7", "ü"]
    assert found.info["words"][:3] == ["a", "caption", "train"]  # equally frequent words are in alphabetical order


def test_vendrovs_folder_above_is_understood(tmp_path):
    assert captions.find(write(tmp_path / "coco", "Vendrov").parent).layout == "Vendrov"


def test_blocks_do_not_show(tmp_path, monkeypatch):
    """Files larger than a block, in either order of the elements and in another precision."""
    rows = np.random.default_rng(1).normal(size=(23, 7)).repeat(5, axis=0)
    lines = "".join(f"a caption {n}\n" for n in range(115))
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}_caps.txt").write_text(lines, encoding="utf-8")
        np.save(tmp_path / f"{split}_ims.npy", rows.astype(np.float32))
    whole = prepared(tmp_path)
    monkeypatch.setattr(features_module, "_BLOCK", 300)
    pieces = prepared(tmp_path)
    assert pieces.info == whole.info
    np.save(tmp_path / "test_ims.npy", np.asfortranarray(rows))
    other = prepared(tmp_path).arrays["test.images"]
    for found in (pieces.arrays["test.images"], whole.arrays["test.images"], other):
        assert np.array_equal(found, whole.arrays["train.images"])


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_file_is_read_in_small_blocks(tmp_path, monkeypatch, order):
    """In either order of its elements: COCO's repeated rows take 10 GB."""
    rows = np.random.default_rng(2).normal(size=(23, 7))
    np.save(tmp_path / "a.npy", np.asarray(rows, order=order))
    monkeypatch.setattr(features_module, "_BLOCK", 300)  # five rows of 56 bytes
    hashed = hashlib.sha256()
    blocks = list(features_module.Features(tmp_path / "a.npy").blocks(5, hashed))
    assert [len(block) for block in blocks] == [5, 5, 5, 5, 3]
    assert np.array_equal(np.concatenate(blocks), rows.astype(np.float32))
    assert hashed.digest() == hashlib.sha256((tmp_path / "a.npy").read_bytes()).digest()


def test_the_hash_follows_the_content(tmp_path):
    first = prepared(write(tmp_path, "Kiros")).info["sha256"]
    names = [name for pair in captions.LAYOUTS["Kiros"].values() for name in pair]
    assert first == digest((name, (tmp_path / name).read_bytes()) for name in names)
    path = tmp_path / "coco_dev_caps.txt"
    path.write_text(path.read_text(encoding="utf-8").replace("caption 3", "caption three"), encoding="utf-8")
    assert prepared(tmp_path).info["sha256"] != first


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
        (
            damage("dev_ims.npy", lambda b: b[:-8]),
            r"dev_ims.npy' must be a .npy array .* takes 96 bytes, and 88 follow",
        ),
        (damage("dev_ims.npy", lambda b: b + b"more"), r"dev_ims.npy' must be a .npy array .* and 100 follow"),
        (
            damage("dev_ims.npy", lambda b: b.replace(b"(3, 8), }" + 12 * b" ", b"(300000000000, 8), }" + b" ")),
            r"dev_ims.npy' .*float32 \(300000000000, 8\) takes 9,600,000,000,000 bytes",
        ),
        (damage("dev_ims.npy", lambda b: b"not an array"), "dev_ims.npy' must be a .npy array"),
        (replace_array("test_ims.npy", np.zeros((4, 8, 1), np.float32)), r"test_ims.npy' .*float32 \(4, 8, 1\)"),
        (replace_array("test_ims.npy", np.ones((4, 8), np.int64)), r"test_ims.npy' .*int64 \(4, 8\)"),
        (replace_array("test_ims.npy", np.array([[None]])), r"must be a floating array .*is object \(1, 1\)"),
        (replace_array("test_ims.npy", one_wrong_row(0)), "test_ims.npy', row 2: .*its norm is 0.0"),
        (replace_array("test_ims.npy", one_wrong_row(np.nan)), "test_ims.npy', row 2: .*its norm is nan"),
        (replace_array("test_ims.npy", np.ones((4, 9), np.float32)), "must have one width; they have .*'test': 9"),
        (
            replace_array("test_ims.npy", np.ones((20, 8), np.float32) * np.array([1] * 12 + [2] * 8)[:, None]),
            "rows 10 to 14 are not",
        ),
        (
            damage("train_caps.txt", lambda b: b.replace(b"caption 9", b"caption \xe9")),
            "train_caps.txt, line 10: .*UTF-8",
        ),
        (damage("train_caps.txt", lambda b: b"\n".join(b.split(b"\n")[1:])), "30 lines for 6 rows; it has 29"),
        (damage("train_caps.txt", lambda b: b""), "train_caps.txt must hold text; it is empty"),
        (
            damage("test_caps.txt", lambda b: b.replace(b"caption 4", b"word " * 400_000)),
            "test_caps.txt', line 5: a caption must have 1 to 1,000 words; it has 400,003",
        ),
        (damage("train_caps.txt", lambda b: b.replace("a train caption 4 ü".encode(), b"")), "line 5: .* is empty"),
    ],
)
def test_wrong_files_are_refused(tmp_path, spoil, message):
    spoil(write(tmp_path, "VSE++"))
    with pytest.raises(UserError, match=message):
        prepared(tmp_path)


def test_the_last_caption_may_lack_its_line_feed(tmp_path):
    damage("train_caps.txt", lambda b: b.rstrip(b"\n"))(write(tmp_path, "VSE++"))
    assert len(said(prepared(tmp_path), "train")) == 30


def test_no_layout_at_all(tmp_path):
    with pytest.raises(UserError, match=r"one of the layouts Vendrov: .*Kiros: coco_train_caps.txt.*in none of them"):
        captions.find(tmp_path)


def test_scenes_are_held_out_by_combination_and_told_truly(tmp_path):
    counts = {"train": 60, "valid": 20, "test": 30}
    name = digit_scenes.write(tmp_path, counts)
    assert name.startswith("scenes of scikit-learn")
    found = prepared(tmp_path)
    value = {word: digit for digit, word in enumerate(digit_scenes.WORDS)}
    seen = []
    for split, size in counts.items():
        images, sentences = found.arrays[f"{split}.images"], said(found, split)
        assert images.shape == (size, 256)
        for i in range(size):
            five = sentences[5 * i : 5 * i + 5]
            told = [[value[word] for word in caption if word in value] for caption in five]
            a, b, c, d = places = tuple(told[0])
            assert told[1] == [a, b, c, d]
            assert told[2] == [a, c, b, d]
            count = 3 if digit_scenes.EMPTY in places else 4
            assert told[3] == [count, a, d]
            assert told[4] == [count, b, c]
            seen.append(places)
            cells = images[i].reshape(2, 8, 2, 8).transpose(0, 2, 1, 3).reshape(4, 64)
            assert [digit == digit_scenes.EMPTY for digit in places] == [not cell.any() for cell in cells]
    assert len(set(seen)) == len(seen)

    again = tmp_path / "again"
    again.mkdir()
    digit_scenes.write(again, counts)
    assert prepared(again).info == found.info
