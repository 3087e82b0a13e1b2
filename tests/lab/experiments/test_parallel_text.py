"""Parallel text: every official form in which it is distributed, and what tells them apart."""

import importlib
from pathlib import Path

import pytest

from parallel_files import DE, EN, read_corpus, write, write_sgm
from rmsnorm_lab.errors import UserError


def test_plain_text_is_read_by_line_feeds_alone(text_folder: Path, sacrebleu_cache: Path) -> None:
    corpus = read_corpus(text_folder)
    assert list(corpus.train.source) == [f"train: {line}" for line in EN]
    assert corpus.valid.target == [f"valid: {line}" for line in DE]
    assert [pairs.name for pairs in corpus.tests] == ["test"]
    assert not corpus.train.tokenised


def test_direction_is_a_matter_of_names(text_folder: Path, sacrebleu_cache: Path) -> None:
    assert list(read_corpus(text_folder, "de", "en").train.source) == [f"train: {line}" for line in DE]


def test_bpe_is_undone(tmp_path: Path, sacrebleu_cache: Path) -> None:
    cut = "Die Wett@@ er@@ lage ist gut@@"
    for stem in ("train.tok.clean.bpe.32000", "newstest2013.tok.bpe.32000", "newstest2014.tok.bpe.32000"):
        write(tmp_path, f"{stem}.en", ["The weather is good"])
        write(tmp_path, f"{stem}.de", [cut])
    write(tmp_path, "newstest2014.en", ["The weather is good"])  # plain, as GNMT's script writes it: not taken
    write(tmp_path, "newstest2014.de", ["Die Wetterlage ist gut"])
    corpus = read_corpus(tmp_path)
    for pairs in (corpus.train, corpus.valid, *corpus.tests):
        assert list(pairs.target) == ["Die Wetterlage ist gut"]
        assert pairs.tokenised


def test_bpe_under_a_plain_name_is_seen(text_folder: Path, sacrebleu_cache: Path) -> None:
    for split in ("train", "valid", "test"):
        write(text_folder, f"{split}.de", ["Die Wett@@ er@@ lage ."])
        write(text_folder, f"{split}.en", ["The wea@@ ther ."])
    corpus = read_corpus(text_folder)
    assert list(corpus.train.target) == ["Die Wetterlage ."]
    assert corpus.train.tokenised


def test_sgm_sets(text_folder: Path, sacrebleu_cache: Path) -> None:
    for name in ("test.en", "test.de"):
        (text_folder / name).unlink()
    write_sgm(text_folder, "newstest2014-deen-src.en.sgm", [f"  {line.replace(' ', '  ')}" for line in EN])
    write_sgm(text_folder, "newstest2014-deen-ref.de.sgm", DE, "refset")
    write_sgm(text_folder, "newstest2017-ende-src.en.sgm", EN[:2])
    write_sgm(text_folder, "newstest2017-ende-ref.de.sgm", DE[:2], "refset")
    first, second = read_corpus(text_folder).tests
    assert (first.name, first.source, first.target) == ("newstest2014", [EN[0], " ".join(EN[1].split()), EN[2]], DE)
    assert (second.name, second.target) == ("newstest2017", DE[:2])


def test_sacrebleus_cache_serves_what_the_folder_lacks(text_folder: Path, sacrebleu_cache: Path) -> None:
    for name in ("test.en", "test.de", "valid.en", "valid.de"):
        (text_folder / name).unlink()
    with pytest.raises(UserError, match="validation set"):
        read_corpus(text_folder)
    for name in ("wmt13", "wmt14/full", "wmt17"):
        (sacrebleu_cache / name).mkdir(parents=True)
        write(sacrebleu_cache / name, f"{name.replace('/', '_')}.en-de.src", EN)
        write(sacrebleu_cache / name, f"{name.replace('/', '_')}.en-de.ref", DE)
    corpus = read_corpus(text_folder)
    assert corpus.valid.source == EN
    assert [pairs.name for pairs in corpus.tests] == ["newstest2014", "newstest2017"]


def test_sacrebleu_itself_names_its_cache_so() -> None:
    """The names are not sacrebleu's public interface: if it moves its files, this fails."""
    module = importlib.import_module("sacrebleu.dataset")
    path = Path(module.DATASETS["wmt14/full"]._get_txt_file_path("en-de", "src"))
    assert path.parts[-3:] == ("wmt14", "full", "wmt14_full.en-de.src")


STANFORD = ["The 28 ##AT##-##AT## year ##AT##-##AT## old cook", "He said : &quot; no &quot;", "It &apos;s here"]


@pytest.mark.parametrize(
    "lines", [STANFORD, ["a well @-@ known man", "b", "c"], ["Two dogs run .", "No stop", "Rain ."]]
)
def test_tokenised_text_under_a_plain_name_is_seen(text_folder: Path, sacrebleu_cache: Path, lines: list[str]) -> None:
    """Stanford's files are Moses's output and are called train.en."""
    for split in ("train", "valid", "test"):
        write(text_folder, f"{split}.en", lines)
    corpus = read_corpus(text_folder)
    assert all(pairs.tokenised for pairs in (corpus.train, corpus.valid, *corpus.tests))
    assert list(corpus.train.source) == lines


def test_a_few_traces_do_not_make_a_text_tokenised(text_folder: Path, sacrebleu_cache: Path) -> None:
    for language in ("en", "de"):
        write(
            text_folder,
            f"train.{language}",
            [*["Plain text, as it is written."] * 60, "It&apos;s a slip .", "and ##AT##"],
        )
    assert not read_corpus(text_folder).train.tokenised


def nvidia(folder: Path, stem: str, *forms: str) -> None:
    for form in forms:
        for language in ("en", "de"):
            write(folder, f"{stem}{form}.{language}", ["The weath@@ er ." if "bpe" in form else f"{stem}{form} ."])


def test_nvidias_folder_is_read_in_the_form_that_every_set_has(tmp_path: Path, sacrebleu_cache: Path) -> None:
    """What wmt16_en_de.sh writes: plain training and test sets, but a validation set that is only tokenised."""
    for language in ("en", "de"):
        write(tmp_path, f"train.{language}", ["It rains."])
        write(tmp_path, f"newstest2014.{language}", ["It rains."])
    nvidia(tmp_path, "train", ".tok", ".tok.clean", ".tok.clean.bpe.32000")
    nvidia(tmp_path, "newstest_dev", ".tok.clean", ".tok.clean.bpe.32000")
    nvidia(tmp_path, "newstest2014", ".tok", ".tok.bpe.32000")
    corpus = read_corpus(tmp_path)
    assert list(corpus.train.source) == ["train.tok.clean ."]
    assert corpus.valid.source == ["newstest_dev.tok.clean ."]
    assert [(pairs.source, pairs.tokenised) for pairs in corpus.tests] == [(["newstest2014.tok ."], True)]
    for language in ("en", "de"):
        write(tmp_path, f"newstest2013.{language}", ["It rains."])
    corpus = read_corpus(tmp_path)
    assert list(corpus.train.source) == corpus.valid.source == corpus.tests[0].source == ["It rains."]


def test_a_test_set_of_another_kind_is_not_left_out(text_folder: Path, sacrebleu_cache: Path) -> None:
    nvidia(text_folder, "newstest2014", ".tok")
    with pytest.raises(UserError, match="test is plain, newstest2014 is tokenised"):
        read_corpus(text_folder)


def test_halves_of_two_forms_are_no_set(tmp_path: Path, sacrebleu_cache: Path) -> None:
    """The files that NVIDIA's README names: a tokenised source and a plain reference."""
    nvidia(tmp_path, "train", ".tok.clean.bpe.32000")
    nvidia(tmp_path, "newstest_dev", ".tok.clean.bpe.32000")
    write(tmp_path, "newstest2014.tok.bpe.32000.en", ["The weath@@ er ."])
    write(tmp_path, "newstest2014.de", ["Das Wetter."])
    with pytest.raises(UserError, match=r"2000\.en must have its other side; .* newstest2014\.de is of another form"):
        read_corpus(tmp_path)


def test_sacrebleus_cache_does_not_mix_with_tokenised_sets(text_folder: Path, sacrebleu_cache: Path) -> None:
    for split in ("train", "valid", "test"):
        write(text_folder, f"{split}.en", STANFORD)
    (sacrebleu_cache / "wmt17").mkdir(parents=True)
    for side, lines in (("src", EN), ("ref", DE)):
        write(sacrebleu_cache / "wmt17", f"wmt17.en-de.{side}", lines)
    assert [pairs.name for pairs in read_corpus(text_folder).tests] == ["test"]
