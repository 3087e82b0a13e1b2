"""Parallel text: every way in which a file can be damaged is named."""

import os
from pathlib import Path

import pytest

from parallel_files import DE, EN, read_corpus, write, write_sgm
from rmsnorm_lab.errors import UserError


def drop_line(folder: Path) -> None:
    write(folder, "train.de", DE[:2])


def cut_in_a_character(folder: Path) -> None:
    content = (folder / "valid.de").read_bytes()
    (folder / "valid.de").write_bytes(content[: content.index("ö".encode()) + 1])


def latin1(folder: Path) -> None:
    (folder / "train.de").write_text("\n".join(DE) + "\n", "latin-1")


def utf16(folder: Path) -> None:
    (folder / "train.en").write_bytes(("\n".join(EN[:1]) + "\n").encode("utf-16-le"))


def empty_test_line(folder: Path) -> None:
    write(folder, "test.de", [DE[0], " ", DE[2]])


def no_lines(folder: Path) -> None:
    (folder / "train.en").write_bytes(b"")


def unreadable(folder: Path) -> None:
    (folder / "train.en").unlink()
    (folder / "train.en").mkdir()


def fifo(folder: Path) -> None:
    (folder / "valid.en").unlink()
    os.mkfifo(folder / "valid.en")


def other_side_missing(folder: Path) -> None:
    (folder / "valid.de").unlink()


def set_missing(folder: Path) -> None:
    (folder / "train.de").unlink()
    (folder / "train.en").unlink()


def only_blank(folder: Path) -> None:
    write(folder, "train.en", ["", "", ""])


def mixed_kinds(folder: Path) -> None:
    for name in ("train.en", "train.de"):
        (folder / name).rename(folder / name.replace("train.", "train.tok."))


def segment_cut(folder: Path) -> None:
    sgm_instead(folder)
    path = folder / "newstest2014-deen-src.en.sgm"
    path.write_text(path.read_text("utf-8").replace("</seg>", "", 1), "utf-8")


def sgm_cut_short(folder: Path) -> None:
    sgm_instead(folder)
    path = folder / "newstest2014-deen-ref.de.sgm"
    path.write_text("\n".join(path.read_text("utf-8").split("\n")[:-3]) + "\n", "utf-8")


def sgm_of_another_set(folder: Path) -> None:
    sgm_instead(folder)
    path = folder / "newstest2014-deen-ref.de.sgm"
    path.write_text(path.read_text("utf-8").replace('docid="a/1"', 'docid="b/7"'), "utf-8")


def sgm_with_fewer(folder: Path) -> None:
    sgm_instead(folder)
    write_sgm(folder, "newstest2014-deen-ref.de.sgm", DE[:2], "refset")


def sgm_twice(folder: Path) -> None:
    sgm_instead(folder)
    path = folder / "newstest2014-deen-src.en.sgm"
    path.write_text(path.read_text("utf-8").replace('id="2"', 'id="1"'), "utf-8")


def sgm_without_text(folder: Path) -> None:
    sgm_instead(folder)
    write_sgm(folder, "newstest2014-deen-src.en.sgm", [EN[0], " ", EN[2]])


def sgm_without_segments(folder: Path) -> None:
    sgm_instead(folder)
    write_sgm(folder, "newstest2014-deen-src.en.sgm", [])
    write_sgm(folder, "newstest2014-deen-ref.de.sgm", [], "refset")


def sgm_without_reference(folder: Path) -> None:
    sgm_instead(folder)
    (folder / "newstest2014-deen-ref.de.sgm").unlink()


def sgm_instead(folder: Path) -> None:
    for name in ("test.en", "test.de"):
        (folder / name).unlink()
    write_sgm(folder, "newstest2014-deen-src.en.sgm", EN)
    write_sgm(folder, "newstest2014-deen-ref.de.sgm", DE, "refset")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_line, r"train\.en and .*train\.de must have the same number of lines; they have 3 and 2"),
        (cut_in_a_character, r"valid\.de, line 3: text must be UTF-8"),
        (latin1, r"train\.de, line 3: text must be UTF-8"),
        (utf16, r"train\.en, line 1: text must hold no zero bytes"),
        (empty_test_line, r"test\.de, line 2: there must be a sentence"),
        (no_lines, r"train\.en must hold text; it is empty"),
        (unreadable, r"train\.en must be a regular file; it is a folder"),
        (fifo, r"valid\.en must be a regular file; it is a FIFO"),
        (other_side_missing, r"valid\.en must have its other side; valid\.de is missing"),
        (set_missing, r"there must be a training set; none is there.*train\.en.* or pass .*catalogs of messages"),
        (only_blank, r"train\.en and .*train\.de must hold sentences"),
        (mixed_kinds, r"train is tokenised, valid is plain, test is plain"),
        (segment_cut, r'src\.en\.sgm, line 4: a segment must be <seg id="N">'),
        (sgm_cut_short, r"ref\.de\.sgm, line 7: the file must end in </srcset> or </refset>"),
        (sgm_of_another_set, r"number 1 is segment '1' of document 'a/1' in the first and .*'b/7'"),
        (sgm_with_fewer, r"they hold 3 and 2"),
        (sgm_twice, r"src\.en\.sgm, line 5: each segment must occur once"),
        (sgm_without_segments, r"src\.en\.sgm must hold segments .*none"),
        (sgm_without_text, r"src\.en\.sgm, line 5: a segment must hold text"),
        (sgm_without_reference, r"must have its reference; newstest2014-deen-ref\.de\.sgm is missing"),
    ],
)
def test_damage_is_named(text_folder: Path, sacrebleu_cache: Path, damage: object, message: str) -> None:
    assert callable(damage)
    damage(text_folder)
    with pytest.raises(UserError, match=message):
        read_corpus(text_folder)


def test_the_last_line_may_lack_its_line_feed(text_folder: Path, sacrebleu_cache: Path) -> None:
    (text_folder / "test.de").write_bytes((text_folder / "test.de").read_bytes()[:-1])
    assert read_corpus(text_folder).tests[0].target[-1] == f"test: {DE[-1]}"


def test_empty_training_lines_are_counted(text_folder: Path, sacrebleu_cache: Path) -> None:
    write(text_folder, "train.en", [EN[0], "", EN[2]])
    train = read_corpus(text_folder).train
    assert (list(train.source), list(train.target)) == ([EN[0], EN[2]], [f"train: {DE[0]}", f"train: {DE[2]}"])
    assert train.without_text == 1


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        read_corpus(tmp_path / "absent")
