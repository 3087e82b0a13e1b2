"""CIFAR-10's files as they are distributed, and every way in which they can be wrong, and the stand-in."""

import hashlib
import pickle
import tarfile
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.data import cifar10, digits
from rmsnorm_lab.experiments.recipes.images import small
from rmsnorm_lab.experiments.tasks import images as images_task

CASES = 4
NAMES = (*cifar10.TRAIN, cifar10.TEST)


def batch(seed):
    rng = np.random.default_rng(seed)
    return {
        "batch_label": f"batch {seed}",
        "labels": rng.integers(10, size=CASES).tolist(),
        "data": rng.integers(256, size=(CASES, 3072), dtype=np.uint8),
        "filenames": [f"{i}.png" for i in range(CASES)],
    }


@pytest.fixture
def unpacked(tmp_path):
    folder = tmp_path / cifar10.FOLDER
    folder.mkdir()
    for seed, name in enumerate(NAMES):
        (folder / name).write_bytes(pickle.dumps(batch(seed), protocol=2))
    meta = {"num_cases_per_batch": CASES, "label_names": [str(i) for i in range(10)], "num_vis": 3072}
    (folder / cifar10.META).write_bytes(pickle.dumps(meta, protocol=2))
    return folder


def test_the_unpacked_folder(unpacked):
    images = cifar10.load(unpacked)
    assert images.train.shape == (5 * CASES, 3, 32, 32)
    assert images.test.shape == (CASES, 3, 32, 32)
    raw = np.concatenate([batch(seed)["data"] for seed in range(5)])
    for n, c, y, x in ((0, 0, 0, 0), (7, 1, 3, 30), (19, 2, 31, 31)):
        assert images.train[n, c, y, x] == (np.float32(raw[n, c * 1024 + y * 32 + x]) - 127.5) / 128
    assert images.train_labels.tolist() == [label for seed in range(5) for label in batch(seed)["labels"]]
    assert images.test_labels.tolist() == batch(5)["labels"]
    assert cifar10.load(unpacked.parent).sha256 == images.sha256  # the folder that holds it


def test_members_with_other_md5s_are_not_the_official_ones(unpacked, monkeypatch):
    recipe = small()
    recipe = replace(recipe, train=replace(recipe.train, batch=2), data=replace(recipe.data, held_out=2))
    monkeypatch.setattr(
        images_task, "zca", lambda images, eps: lambda images: images
    )  # takes half a minute for 3072 pixels
    assert not cifar10.load(unpacked).official
    assert images_task.load(unpacked, recipe).source.details["files"] == "not the official ones"
    found = {name: hashlib.md5((unpacked / name).read_bytes()).hexdigest() for name in cifar10.MD5S}
    monkeypatch.setattr(cifar10, "MD5S", found)
    assert cifar10.load(unpacked).official
    assert "files" not in images_task.load(unpacked, recipe).source.details
    monkeypatch.setitem(found, "data_batch_4", "0" * 32)
    assert not cifar10.load(unpacked).official


def packed(unpacked, path):
    with tarfile.open(path, "w:gz") as archive:
        archive.add(unpacked, cifar10.FOLDER)
    return path


def test_the_archive_is_checked_and_gives_the_same(unpacked, tmp_path, monkeypatch):
    archive = packed(unpacked, tmp_path / cifar10.ARCHIVE)
    with pytest.raises(UserError, match=f"must have the MD5 {cifar10.ARCHIVE_MD5} .*cut short, or it is another file"):
        cifar10.load(archive)
    monkeypatch.setattr(cifar10, "ARCHIVE_MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    assert cifar10.load(archive).sha256 == cifar10.load(unpacked).sha256
    unpacked.rename(tmp_path / "away")
    assert len(cifar10.load(tmp_path).train) == 5 * CASES  # the folder that holds the archive
    archive.write_bytes(archive.read_bytes()[:9000])
    monkeypatch.setattr(cifar10, "ARCHIVE_MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    with pytest.raises(UserError, match="must be the official archive"):
        cifar10.load(archive)


def test_a_folder_that_holds_neither_is_named(tmp_path):
    with pytest.raises(UserError, match=r"a folder that holds one of them; '(.*)' holds neither") as raised:
        cifar10.load(tmp_path)
    assert f"{str(tmp_path)!r} holds neither" in str(raised.value)
    with pytest.raises(UserError, match="nowhere' does not exist"):
        cifar10.load(tmp_path / "nowhere")


class Attack:
    def __reduce__(self):
        return (open, ("owned", "w"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data_batch_3", None, "lacks data_batch_3 of CIFAR-10"),
        ("data_batch_2", pickle.dumps(batch(1), protocol=2)[:-9], "data_batch_2' must be a batch of CIFAR-10"),
        ("data_batch_2", b"", "data_batch_2' must be a batch of CIFAR-10"),
        ("test_batch", pickle.dumps([1]), "test_batch' must hold a dict; it holds list"),
        (
            "data_batch_1",
            pickle.dumps({**batch(0), "labels": [1] * 3}),
            r"data_batch_1' .*list of 4 labels; it holds 3",
        ),
        ("data_batch_1", pickle.dumps({**batch(0), "labels": [0, 1, 12, 3]}), "data_batch_1', record 2: .* got 12"),
        ("data_batch_1", pickle.dumps({**batch(0), "data": np.zeros((4, 3072))}), r"holds float64 \(4, 3072\)"),
        (
            "data_batch_1",
            pickle.dumps({**batch(0), "data": batch(0)["data"][:3]}),
            r"uint8 \(4, 3072\); it holds uint8 \(3",
        ),
        ("batches.meta", pickle.dumps({}), "must say num_cases_per_batch; got None"),
        ("data_batch_4", pickle.dumps({"data": Attack()}), "data_batch_4' .*asks for (io|_io).open"),
    ],
)
def test_wrong_files_are_refused(unpacked, name, content, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = unpacked / name
    path.unlink() if content is None else path.write_bytes(content)
    for data in (unpacked, unpacked.parent):
        with pytest.raises(UserError, match=message) as caught:
            cifar10.load(data)
        assert f"'{unpacked}" in str(caught.value)  # the file's own folder, whichever path was given
    assert not (tmp_path / "owned").exists()


def test_no_such_place(tmp_path):
    with pytest.raises(UserError, match=r"must name .* or the folder cifar-10-batches-py"):
        cifar10.load(tmp_path / "nowhere")


def test_the_digits_are_enlarged_and_split_the_same_every_time():
    images, name = digits.load()
    again, _ = digits.load()
    assert name.startswith("scikit-learn ")
    assert images.train.shape == (1197, 1, 24, 24)
    assert images.test.shape == (600, 1, 24, 24)
    assert np.array_equal(images.train, again.train)
    assert images.sha256 == again.sha256
    assert images.train.min() == -1
    assert images.train.max() == 1
    assert np.array_equal(images.train[:, :, ::3, ::3], images.train[:, :, 2::3, 1::3])
    grey, labels, _ = digits.digits()
    both = np.concatenate((images.train, images.test))[:, 0, ::3, ::3] * 8 + 8
    assert np.array_equal(np.sort(both.reshape(len(grey), -1), 0), np.sort(grey.reshape(len(grey), -1), 0))
    assert sorted(np.concatenate((images.train_labels, images.test_labels))) == sorted(labels)
