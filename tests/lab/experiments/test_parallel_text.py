"""Parallel text: every official form, every way a file can be damaged, subwords and batches."""

import importlib
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.data import dates
from rmsnorm_lab.experiments.data.batches import Batches, padded
from rmsnorm_lab.experiments.data.corpus import Corpus
from rmsnorm_lab.experiments.data.loading import Loading
from rmsnorm_lab.experiments.data.parallel import find
from rmsnorm_lab.experiments.data.subwords import BEGIN, END, PAD, Subwords

EN = ["A man walks.", "Two dogs\u2028run home.", "It is 25 degrees & sunny."]
DE = ["Ein Mann geht.", "Zwei Hunde laufen heim.", "Es ist 25 Grad und schön."]


def write(folder: Path, name: str, lines: list[str]) -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def write_sgm(folder: Path, name: str, lines: list[str], kind: str = "srcset") -> Path:
    segments = [f'<seg id="{number}">{line}</seg>' for number, line in enumerate(lines, start=1)]
    head = [f'<{kind} setid="newstest2014" srclang="any">', '<doc sysid="ref" docid="a/1" genre="news" origlang="de">']
    return write(folder, name, [*head, "<p>", *segments, "</p>", "</doc>", f"</{kind}>"])


def read_corpus(folder: Path, source: str = "en", target: str = "de") -> Corpus:
    return find(folder, source, target).read(Loading("test"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "valid", "test"):
        write(tmp_path, f"{split}.en", [f"{split}: {line}" for line in EN])
        write(tmp_path, f"{split}.de", [f"{split}: {line}" for line in DE])
    return tmp_path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of sacrebleu."""
    place = tmp_path / "sacrebleu"
    monkeypatch.setattr("sacrebleu.utils.SACREBLEU_DIR", str(place))
    return place


def test_plain_text_is_read_by_line_feeds_alone(folder: Path, cache: Path) -> None:
    corpus = read_corpus(folder)
    assert list(corpus.train.source) == [f"train: {line}" for line in EN]
    assert corpus.valid.target == [f"valid: {line}" for line in DE]
    assert [pairs.name for pairs in corpus.tests] == ["test"]
    assert not corpus.train.tokenised


def test_direction_is_a_matter_of_names(folder: Path, cache: Path) -> None:
    assert list(read_corpus(folder, "de", "en").train.source) == [f"train: {line}" for line in DE]


def test_bpe_is_undone(tmp_path: Path, cache: Path) -> None:
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


def test_bpe_under_a_plain_name_is_seen(folder: Path, cache: Path) -> None:
    for split in ("train", "valid", "test"):
        write(folder, f"{split}.de", ["Die Wett@@ er@@ lage ."])
        write(folder, f"{split}.en", ["The wea@@ ther ."])
    corpus = read_corpus(folder)
    assert list(corpus.train.target) == ["Die Wetterlage ."]
    assert corpus.train.tokenised


def test_sgm_sets(folder: Path, cache: Path) -> None:
    for name in ("test.en", "test.de"):
        (folder / name).unlink()
    write_sgm(folder, "newstest2014-deen-src.en.sgm", [f"  {line.replace(' ', '  ')}" for line in EN])
    write_sgm(folder, "newstest2014-deen-ref.de.sgm", DE, "refset")
    write_sgm(folder, "newstest2017-ende-src.en.sgm", EN[:2])
    write_sgm(folder, "newstest2017-ende-ref.de.sgm", DE[:2], "refset")
    first, second = read_corpus(folder).tests
    assert (first.name, first.source, first.target) == ("newstest2014", [EN[0], " ".join(EN[1].split()), EN[2]], DE)
    assert (second.name, second.target) == ("newstest2017", DE[:2])


def test_sacrebleus_cache_serves_what_the_folder_lacks(folder: Path, cache: Path) -> None:
    for name in ("test.en", "test.de", "valid.en", "valid.de"):
        (folder / name).unlink()
    with pytest.raises(UserError, match="validation set"):
        read_corpus(folder)
    for name in ("wmt13", "wmt14/full", "wmt17"):
        (cache / name).mkdir(parents=True)
        write(cache / name, f"{name.replace('/', '_')}.en-de.src", EN)
        write(cache / name, f"{name.replace('/', '_')}.en-de.ref", DE)
    corpus = read_corpus(folder)
    assert corpus.valid.source == EN
    assert [pairs.name for pairs in corpus.tests] == ["newstest2014", "newstest2017"]


def test_sacrebleu_itself_names_its_cache_so() -> None:
    """The names are not sacrebleu's public interface: if it moves its files, this fails."""
    module = importlib.import_module("sacrebleu.dataset")
    path = Path(module.DATASETS["wmt14/full"]._get_txt_file_path("en-de", "src"))
    assert path.parts[-3:] == ("wmt14", "full", "wmt14_full.en-de.src")


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
        (set_missing, r"there must be a training set; none is there.*train\.en"),
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
def test_damage_is_named(folder: Path, cache: Path, damage: object, message: str) -> None:
    assert callable(damage)
    damage(folder)
    with pytest.raises(UserError, match=message):
        read_corpus(folder)


def test_the_last_line_may_lack_its_line_feed(folder: Path, cache: Path) -> None:
    (folder / "test.de").write_bytes((folder / "test.de").read_bytes()[:-1])
    assert read_corpus(folder).tests[0].target[-1] == f"test: {DE[-1]}"


STANFORD = ["The 28 ##AT##-##AT## year ##AT##-##AT## old cook", "He said : &quot; no &quot;", "It &apos;s here"]


@pytest.mark.parametrize(
    "lines", [STANFORD, ["a well @-@ known man", "b", "c"], ["Two dogs run .", "No stop", "Rain ."]]
)
def test_tokenised_text_under_a_plain_name_is_seen(folder: Path, cache: Path, lines: list[str]) -> None:
    """Stanford's files are Moses's output and are called train.en."""
    for split in ("train", "valid", "test"):
        write(folder, f"{split}.en", lines)
    corpus = read_corpus(folder)
    assert all(pairs.tokenised for pairs in (corpus.train, corpus.valid, *corpus.tests))
    assert list(corpus.train.source) == lines


def test_a_few_traces_do_not_make_a_text_tokenised(folder: Path, cache: Path) -> None:
    for language in ("en", "de"):
        write(
            folder, f"train.{language}", [*["Plain text, as it is written."] * 60, "It&apos;s a slip .", "and ##AT##"]
        )
    assert not read_corpus(folder).train.tokenised


def nvidia(folder: Path, stem: str, *forms: str) -> None:
    for form in forms:
        for language in ("en", "de"):
            write(folder, f"{stem}{form}.{language}", ["The weath@@ er ." if "bpe" in form else f"{stem}{form} ."])


def test_nvidias_folder_is_read_in_the_form_that_every_set_has(tmp_path: Path, cache: Path) -> None:
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


def test_a_test_set_of_another_kind_is_not_left_out(folder: Path, cache: Path) -> None:
    nvidia(folder, "newstest2014", ".tok")
    with pytest.raises(UserError, match="test is plain, newstest2014 is tokenised"):
        read_corpus(folder)


def test_halves_of_two_forms_are_no_set(tmp_path: Path, cache: Path) -> None:
    """The files that NVIDIA's README names: a tokenised source and a plain reference."""
    nvidia(tmp_path, "train", ".tok.clean.bpe.32000")
    nvidia(tmp_path, "newstest_dev", ".tok.clean.bpe.32000")
    write(tmp_path, "newstest2014.tok.bpe.32000.en", ["The weath@@ er ."])
    write(tmp_path, "newstest2014.de", ["Das Wetter."])
    with pytest.raises(UserError, match=r"2000\.en must have its other side; .* newstest2014\.de is of another form"):
        read_corpus(tmp_path)


def test_sacrebleus_cache_does_not_mix_with_tokenised_sets(folder: Path, cache: Path) -> None:
    for split in ("train", "valid", "test"):
        write(folder, f"{split}.en", STANFORD)
    (cache / "wmt17").mkdir(parents=True)
    for side, lines in (("src", EN), ("ref", DE)):
        write(cache / "wmt17", f"wmt17.en-de.{side}", lines)
    assert [pairs.name for pairs in read_corpus(folder).tests] == ["test"]


def test_empty_training_lines_are_counted(folder: Path, cache: Path) -> None:
    write(folder, "train.en", [EN[0], "", EN[2]])
    train = read_corpus(folder).train
    assert (list(train.source), list(train.target)) == ([EN[0], EN[2]], [f"train: {DE[0]}", f"train: {DE[2]}"])
    assert train.without_text == 1


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        read_corpus(tmp_path / "absent")


MONTHS = [
    "Januar",
    "Februar",
    "März",
    "April",
    "Mai",
    "Juni",
    "Juli",
    "August",
    "September",
    "Oktober",
    "November",
    "Dezember",
]


def day(german: str) -> tuple[int, int, int]:
    """Day, month and year of a German date in any style."""
    found = re.search(r"(\d+)\. ?(\d+|\w+)[. ](\d{4})", german)
    assert found, german
    return int(found[1]), MONTHS.index(found[2]) + 1 if found[2] in MONTHS else int(found[2]), int(found[3])


def test_dates_are_held_out() -> None:
    corpus = dates.corpus(train=3000, valid=100, test=200)
    parts = [{day(line) for line in pairs.target} for pairs in (corpus.train, corpus.valid, *corpus.tests)]
    assert [len(part) for part in parts] == [3000, 100, 200]
    assert len(set.union(*parts)) == 3300
    assert corpus == dates.corpus(train=3000, valid=100, test=200)
    with pytest.raises(UserError, match="73,049 days; 73,050 pairs are too many"):
        dates.corpus(73_000, 25, 25)


@pytest.mark.parametrize(
    ("locale", "style", "expected"),
    [
        ("en", "full", "Monday, November 23, 2026, 5:08\u202fPM"),
        ("de", "full", "Montag, 23. November 2026, 17:08"),
        ("de", "medium", "23.11.2026, 17:08"),
        ("fr", "long", "23 novembre 2026, 17:08"),
    ],
)
def test_dates_as_cldr_writes_them(locale: str, style: str, expected: str) -> None:
    moment = dates.Moment(dates.datetime.date(2026, 11, 23), dates.datetime.time(17, 8), style)
    written = dates.written(moment, locale)
    # CLDR's punctuation changes between versions: the test compares words, numbers and their order.
    assert [*filter(None, map(str.strip, written.replace(",", " ").split()))] == expected.replace(",", " ").split()


def test_unknown_locale() -> None:
    with pytest.raises(UserError, match="locales that Babel knows; got 'xx'"):
        dates.corpus(10, 1, 1, target="xx")


@pytest.fixture(scope="module")
def small() -> Corpus:
    return dates.corpus(train=400, valid=20, test=20)


@pytest.fixture(scope="module")
def subwords(small: Corpus) -> Subwords:
    return Subwords.learn([*small.train.source, *small.train.target], vocabulary=330)


AWKWARD = ["</s> <pad> <s>", "日本語 و \u202f🎉", " two  spaces ", "tab\there", ""]


def test_subwords_are_lossless_and_cannot_be_controlled(subwords: Subwords) -> None:
    encoded = subwords.encode(AWKWARD)
    for index, text in enumerate(AWKWARD):
        ids = encoded[index]
        assert ids[-1] == END
        assert not {PAD, BEGIN, END} & set(ids[:-1].tolist())
        assert subwords.decode(ids.tolist()) == text


@pytest.fixture(scope="module")
def of_spaces() -> Subwords:
    """With subwords that hold several characters of white space."""
    return Subwords.learn(
        ["a    b\t\t\tc's   1.,\n\n\n  \u202f\u202f aa", "  \t \t  é\xa0\xa0\x85"] * 3, vocabulary=400
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.sampled_from("aé1's.,-\t\n   \x1c\x85\u00a0\u202f\u180e日"), max_size=12), max_size=4))
def test_words_are_encoded_as_in_their_sentence(of_spaces: Subwords, texts: list[str]) -> None:
    """encode takes each word once; the library, given whole sentences, must find the same ids."""
    texts = [*texts, *texts, " ".join(texts)]
    encoded = of_spaces.encode(texts)
    assert len(encoded) == len(texts)
    for index, text in enumerate(texts):
        whole = [number + 3 for number in of_spaces._tokenizer.encode(text).ids]
        assert encoded[index].tolist() == [*whole, END]


def test_subwords_learn_from_what_they_are_given_alone(small: Corpus, subwords: Subwords, tmp_path: Path) -> None:
    assert subwords.size == 330
    again = Subwords.learn([*small.train.source, *small.train.target], vocabulary=330)
    assert again.dumps() == subwords.dumps()
    assert b"November" in subwords.dumps()
    assert b"Dezember" not in Subwords.learn(small.train.source, vocabulary=330).dumps()
    (tmp_path / "subwords.json").write_bytes(subwords.dumps())
    read = Subwords.loads((tmp_path / "subwords.json").read_text("utf-8"), tmp_path)
    assert (read.encode(AWKWARD).values == subwords.encode(AWKWARD).values).all()


def test_damaged_subwords(subwords: Subwords, tmp_path: Path) -> None:
    path = tmp_path / "subwords.json"
    path.write_bytes(subwords.dumps()[:1000])
    with pytest.raises(UserError, match=r"subwords\.json must hold the subwords"):
        Subwords.loads(path.read_text("utf-8"), path)


def word_level(subwords: Subwords) -> str:
    """A word-level encoding of four words."""
    return Tokenizer(WordLevel({"a": 0, "b": 1, "c": 2, "[UNK]": 3}, unk_token="[UNK]")).to_str()


def dropout(subwords: Subwords) -> str:
    found = json.loads(subwords.dumps())
    found["model"]["dropout"] = 0.1  # another result each time
    return json.dumps(found)


def a_byte_missing(subwords: Subwords) -> str:
    found = json.loads(subwords.dumps())
    found["model"]["vocab"] = {word: i for i, word in enumerate(w for w in found["model"]["vocab"] if w != "!")}
    return json.dumps(found)


def a_control_token(subwords: Subwords) -> str:
    found = Tokenizer.from_str(subwords.dumps().decode())
    found.add_special_tokens(["<pad>"])
    return found.to_str()


@pytest.mark.parametrize("foreign", [word_level, dropout, a_byte_missing, a_control_token])
def test_foreign_subwords_are_refused(subwords: Subwords, foreign: object) -> None:
    assert callable(foreign)
    with pytest.raises(UserError, match=r"subwords\.json must hold the subwords as this program saved them"):
        Subwords.loads(foreign(subwords), Path("subwords.json"))


@pytest.fixture(scope="module")
def batches(small: Corpus, subwords: Subwords) -> Batches:
    return Batches(subwords.encode(small.train.source), subwords.encode(small.train.target), 300, by_tokens=True)


def test_an_epoch_sees_every_sentence_once(small: Corpus, subwords: Subwords, batches: Batches) -> None:
    for epoch in (0, 2):
        seen = [
            tuple(subwords.decode(row.tolist()) for row in pair)
            for step in range(epoch * batches.epoch, (epoch + 1) * batches.epoch)
            for pair in zip(*batches(step, seed=3), strict=True)
        ]
        assert sorted(seen) == sorted(zip(small.train.source, small.train.target, strict=True))


def test_batches_keep_to_their_size_and_waste_little(batches: Batches) -> None:
    tokens = padding = 0
    for step in range(batches.epoch):
        source, target = batches(step, seed=0)
        assert len(source) * max(source.shape[1], target.shape[1]) <= 300
        tokens += target.numel()
        padding += int((target == PAD).sum())
    assert padding / tokens < 0.05


def test_a_batch_is_a_function_of_step_and_seed(small: Corpus, subwords: Subwords, batches: Batches) -> None:
    other = Batches(subwords.encode(small.train.source), subwords.encode(small.train.target), 300, by_tokens=True)
    steps = [5, batches.epoch + 1, 0, 5]
    for step in steps:  # in another order, from another object
        first, second = batches(step, seed=1), other(step, seed=1)
        assert (first.source == second.source).all()
        assert (first.target == second.target).all()
    assert any(batches(0, 1).source.shape != batches(0, seed).source.shape for seed in range(2, 8))
    epochs = [batches(step, 1) for step in (0, batches.epoch)]
    assert epochs[0].source.shape != epochs[1].source.shape or (epochs[0].source != epochs[1].source).any()


def test_sentence_batches(subwords: Subwords, small: Corpus) -> None:
    source, target = subwords.encode(small.train.source), subwords.encode(small.train.target)
    by_sentence = Batches(source, target, 64, by_tokens=False)
    sizes = [len(by_sentence(step, 0).source) for step in range(by_sentence.epoch)]
    assert sorted(sizes) == [400 % 64, *[64] * (400 // 64)]
    assert np.array_equal(padded(source, [3])[0].numpy(), source[3])
