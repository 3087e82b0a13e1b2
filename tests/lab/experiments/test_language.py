"""The text: how it is read, split, hashed and refused."""

import math
import os
import tracemalloc
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

from rmsnorm_lab.errors import UserError  # noqa: E402
from rmsnorm_lab.experiments.data import standard_library  # noqa: E402
from rmsnorm_lab.experiments.recipes.language import small  # noqa: E402
from rmsnorm_lab.experiments.tasks import language  # noqa: E402


def load(path, context, batch):
    recipe = small()
    model, train = replace(recipe.model, context=context), replace(recipe.train, batch=batch)
    return language.load(path, replace(recipe, model=model, train=train))


def folder(tmp_path, files):
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path


def decoded(ids, text_of_training):
    """Ids back to characters; the id beyond the vocabulary becomes '?'."""
    known = sorted(set(text_of_training))
    return "".join(known[i] if i < len(known) else "?" for i in ids.tolist())


def test_a_folder_is_split_by_file_and_nothing_is_lost(tmp_path):
    files = {f"part{i}/{i}.txt": f"<{i:02d}>" * 50 for i in range(20)}
    task = load(folder(tmp_path, files), context=4, batch=2)
    train = decoded(task.text.train, "<>0123456789")
    held_out = decoded(task.text.held_out, "<>0123456789")
    in_train = {i for i in range(20) if f"<{i:02d}>" in train}
    in_held_out = {i for i in range(20) if f"<{i:02d}>" in held_out}
    assert in_train | in_held_out == set(range(20))
    assert not in_train & in_held_out
    assert len(in_held_out) == 2  # a tenth of the characters
    assert task.source.details["held out"] == "by file"
    assert task.source.details["characters"] == len(train) + len(held_out) == 20 * 50 * 4
    assert (task.source.details["files"], task.source.stand_in) == (20, False)


def test_the_split_and_the_hash_depend_on_names_and_contents_only(tmp_path):
    files = {f"{i}.txt": f"text {i} " * 40 for i in range(12)}
    one = load(folder(tmp_path / "one", files), 4, 2)
    two = load(folder(tmp_path / "two", dict(reversed(files.items()))), 4, 2)
    assert one.source.sha256 == two.source.sha256
    assert torch.equal(one.text.held_out, two.text.held_out)
    changed = load(folder(tmp_path / "three", {**files, "7.txt": "text 8 " * 40}), 4, 2)
    renamed = load(folder(tmp_path / "four", {name.replace("7", "77"): text for name, text in files.items()}), 4, 2)
    assert len({one.source.sha256, changed.source.sha256, renamed.source.sha256}) == 3


def test_a_single_file_gives_its_last_tenth(tmp_path):
    path = folder(tmp_path, {"a.txt": "a" * 900 + "b" * 100}) / "a.txt"
    task = load(path, 4, 2)
    assert decoded(task.text.train, "a") == "a" * 900
    assert decoded(task.text.held_out, "a") == "?" * 100  # never seen in training
    assert task.text.vocabulary == 2
    assert (task.source.name, task.source.details["held out"]) == ("a.txt", "the last tenth of the file")


def test_text_is_read_within_four_times_its_size(tmp_path):
    size = 3_000_000
    (tmp_path / "a.txt").write_text("abcdefghij" * (size // 10))
    tracemalloc.start()
    task = load(tmp_path / "a.txt", context=4, batch=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * size + (20 << 20)  # and two blocks
    assert decoded(task.text.train, "abcdefghij") == "abcdefghij" * (size * 9 // 100)


@pytest.mark.parametrize("different", [255, 256, 3000])
def test_characters_are_numbered_in_their_order(tmp_path, monkeypatch, different):
    """However many there are, and wherever a block ends."""
    monkeypatch.setattr(language, "_BLOCK", 1000)
    alphabet = "".join(map(chr, range(0x4E00, 0x4E00 + different)))
    (tmp_path / "a.txt").write_text(alphabet[::-1] * 9 + "a" * different, encoding="utf-8")
    text = load(tmp_path / "a.txt", context=4, batch=2).text
    assert text.characters == alphabet
    assert text.train.tolist() == [*range(different)][::-1] * 9
    assert text.held_out.tolist() == [different] * different
    assert text.unigram_bits == pytest.approx(math.log2(10 * different + 1))


def test_hidden_files_are_not_text(tmp_path):
    files = {"a.txt": "abc" * 300, "b.txt": "abc" * 30, ".git/objects": b"\xff\xfe", ".hidden": b"\xff"}
    assert load(folder(tmp_path, files), 4, 2).source.details["files"] == 2


def test_the_default_is_the_standard_library_and_called_a_stand_in():
    task = load(None, 64, 16)
    assert task.source.stand_in
    assert task.source.name.startswith("Python ")
    assert task.source.details["files"] > 300
    assert task.source.details["characters"] > 5_000_000
    assert 0.08 < len(task.text.held_out) / task.source.details["characters"] < 0.15
    assert 4 < task.text.unigram_bits < 5  # program text
    names = standard_library.sources()
    assert "argparse.py" in names
    assert "json/decoder.py" in names
    parts = {part for name in names for part in name.split("/")}
    assert not parts & {"test", "tests", "idle_test", "site-packages"}
    assert not [part for part in parts if part.startswith("_sysconfigdata")]


def test_unigram_bits_of_a_known_distribution(tmp_path):
    """Four characters, equally frequent in both parts: 2 bits, except for the one added to each count."""
    task = load(folder(tmp_path, {"a.txt": "abcd" * 10_000}) / "a.txt", 4, 2)
    assert task.text.unigram_bits == pytest.approx(2.0, abs=1e-3)


@pytest.mark.parametrize(
    ("files", "asked", "message"),
    [
        ({}, "missing.txt", "must name a file or a folder; .*missing.txt.* is neither"),
        ({"empty/.keep": ""}, "empty", "the folder .*empty.* holds no files"),
        (
            {"d/good.txt": "x" * 900, "d/bad.txt": b"abc\xe9def"},
            "d",
            r"bad.txt, line 1: text must be UTF-8; .* take it out",
        ),
        ({"d/good.txt": "x" * 900, "d/nul.txt": "a\nb\0c"}, "d", r"nul.txt, line 2: text must hold no zero bytes"),
        ({"s.txt": "x" * 300}, "s.txt", r"at least 1,040 training .* 's.txt' gives 270 and 30.* at least 1,301 char"),
    ],
)
def test_wrong_text_is_refused_with_the_reason(tmp_path, files, asked, message):
    with pytest.raises(UserError, match=message):
        load(folder(tmp_path, files) / asked, context=64, batch=16)


def test_links_are_followed_and_a_bom_is_no_character(tmp_path):
    parts = {f"{i}.txt": f"text {i} " * 40 for i in range(12)}
    whole = load(folder(tmp_path / "whole", {f"shard/{name}": text for name, text in parts.items()}), 4, 2)
    folder(tmp_path / "elsewhere", {**parts, "3.txt": "\N{ZERO WIDTH NO-BREAK SPACE}" + parts["3.txt"]})
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/shard").symlink_to(tmp_path / "elsewhere")
    assert load(tmp_path / "linked", 4, 2).source.sha256 == whole.source.sha256


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.symlink_to("nowhere"), "inner/odd must be readable; it is not: No such file"),
        (lambda path: path.symlink_to(".."), "inner/odd leads back to a folder that holds it"),
        (lambda path: path.symlink_to(path), "inner/odd must be readable; it is not: Too many levels"),
        (os.mkfifo, "inner/odd must be a regular file; it is a FIFO"),
    ],
)
def test_nothing_in_a_folder_is_skipped(tmp_path, make, message):
    make(folder(tmp_path, {"a.txt": "x" * 2000, "inner/b.txt": "x" * 2000}) / "inner/odd")
    with pytest.raises(UserError, match=message):
        load(tmp_path, context=64, batch=16)
    with pytest.raises(UserError, match=r"must be a (regular )?file|must name a file"):
        load(tmp_path / "inner/odd" if make is os.mkfifo else tmp_path / "absent", context=64, batch=16)


def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    """As an ordinary user: what root may read is not refused."""
    path = folder(tmp_path, {"a.txt": "x" * 2000, "secret/b.txt": "x" * 2000}) / "secret"
    path.chmod(0)
    if os.access(path, os.R_OK):
        with pytest.MonkeyPatch.context() as patch:
            listed = os.listdir
            patch.setattr(os, "listdir", lambda at: denied(at) if str(at) == str(path) else listed(at))
            check_refused(tmp_path)
    else:
        check_refused(tmp_path)
    path.chmod(0o700)


def denied(path):
    raise PermissionError(13, "Permission denied", str(path))


def check_refused(path):
    with pytest.raises(UserError, match=r"secret must be readable; it is not: Permission denied"):
        load(path, context=64, batch=16)


def test_the_size_asked_for_is_enough(tmp_path):
    load(folder(tmp_path, {"s.txt": "x" * 1301}) / "s.txt", context=64, batch=16)


def test_batches_depend_on_step_and_seed_only_and_targets_follow_inputs(tmp_path):
    path = folder(tmp_path, {"a.txt": "".join(map(chr, range(300, 2300)))}) / "a.txt"
    task = load(path, context=16, batch=8)
    inputs, targets = task.batch(5, 1)
    task.batch(6, 1)
    assert torch.equal(task.batch(5, 1)[0], inputs)
    assert torch.equal(targets, inputs + 1)
    assert inputs.shape == (8, 16)
    others = [task.batch(step, seed)[0] for step, seed in ((6, 1), (5, 2), (1, 5))]
    assert not any(torch.equal(other, inputs) for other in others)


def test_the_loss_is_a_sum_and_its_weight_and_the_splits_share_no_window(tmp_path):
    task = load(folder(tmp_path, {"a.txt": "abcd" * 1000}) / "a.txt", context=16, batch=8)
    torch.manual_seed(0)
    model = task.model("rms", "rmsnorm")
    batch = task.batch(0, 0)
    halves = [tuple(part[half] for part in batch) for half in (slice(3), slice(3, None))]
    assert task.weight(batch) == 8 * 16 == sum(map(task.weight, halves))
    torch.testing.assert_close(sum(task.loss(model, half) for half in halves), task.loss(model, batch))
    windows = language.fixed_windows(task.text.held_out, 2 * task.recipe.data.evaluation_windows, 16)
    for split, start in (("valid", 0), ("test", 1)):
        assert torch.equal(task.windows[split][0], windows[0][start::2])
        found = task.evaluate(model.eval(), split)
        chosen = tuple(part[start::2] for part in windows)
        assert found["loss"] == pytest.approx(task.loss(model, chosen).item() / task.weight(chosen))
        assert found["bits"] == pytest.approx(found["loss"] / math.log(2))


@pytest.mark.parametrize(("length", "count", "expected"), [(1000, 10, 10), (50, 10, 3), (17, 10, 1)])
def test_fixed_windows_cover_the_text_without_overlap(length, count, expected):
    inputs, targets = language.fixed_windows(torch.arange(length), count, 16)
    assert inputs.shape == (expected, 16)
    assert torch.equal(targets, inputs + 1)
    assert len(set(inputs.flatten().tolist())) == expected * 16
    assert expected == 1 or targets[-1, -1] == length - 1
