"""Catalogs of messages as parallel text: encodings, plurals, languages, packages, and the tasks that take them."""

import json
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from message_catalogs import INSTALLED, SENTENCES, ar, header, mo, package, pairs, po, read, tar
from rmsnorm.cli import main
from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments import tasks
from rmsnorm_lab.experiments.data import catalogs, deb, messages
from rmsnorm_lab.experiments.data.catalogs import Catalog
from rmsnorm_lab.experiments.data.corpus import Corpus
from rmsnorm_lab.experiments.recipes.settings import changed

POLISH = "nplurals=3; plural=(n==1 ? 0 : n%10>=2 && n%10<=4 && (n%100<10 || n%100>=20) ? 1 : 2);"


def all_pairs(corpus: Corpus) -> set[tuple[str, str]]:
    sets = (corpus.train, corpus.valid, *corpus.tests)
    return {pair for each in sets for pair in zip(each.source, each.target, strict=True)}


@pytest.mark.parametrize(
    ("charset", "text"),
    [
        ("UTF-8", "Größe „ändern“ 変更"),
        ("ISO-8859-1", "Größe ändern"),
        ("ISO-8859-2", "Změnit velikost"),
        ("ISO-8859-15", "Größe in €"),
        ("CP1252", "Größe „ändern“"),
        ("KOI8-R", "Изменить размер"),
        ("CP1251", "Изменить размер"),
        ("EUC-JP", "大きさの変更"),
        ("SHIFT_JIS", "大きさの変更"),
        ("GB2312", "改变大小"),
        ("GB18030", "改变大小"),
        ("BIG5", "變更大小"),
        ("EUC-KR", "크기 변경"),
        ("TIS-620", "เปลี่ยนขนาด"),
    ],
)
@pytest.mark.parametrize("kind", ["<", ">", "po"])
def test_every_encoding_that_a_header_may_name(charset: str, text: str, kind: str) -> None:
    if kind == "po":
        content, name = po(f'msgid "Change size"\nmsgstr "{text}"\n', charset=charset), "a.po"
    else:
        content, name = mo([("Change size", text)], charset, kind), "a.mo"
    assert pairs(content, name) == [("Change size", text)]


def test_contexts_and_plurals_are_the_same_in_both_formats() -> None:
    compiled = mo(
        [
            ("menu\4Open it", "Öffnen"),
            ("Open it", "Offen"),
            ("verb\4%d file\0%d files", "%d Datei\0%d Dateien"),
            ("Empty it", ""),
        ]
    )
    text = po(
        'msgctxt "menu"\nmsgid "Open it"\nmsgstr "Öff"\n"nen"\n',
        'msgid "Open it"\nmsgstr "Offen"\n',
        'msgctxt "verb"\nmsgid "%d file"\nmsgid_plural "%d files"\nmsgstr[0] "%d Datei"\nmsgstr[1] "%d Dateien"\n',
        'msgid "Empty it"\nmsgstr ""\n',
        '#~ msgid "Old one"\n#~ msgstr "Alt"\n',
    )
    expected = [("Open it", "Öffnen"), ("Open it", "Offen"), ("%d file", "%d Datei"), ("%d files", "%d Dateien")]
    for content, name in ((compiled, "a.mo"), (text, "a.po")):
        assert sorted(pairs(content, name)) == sorted([*expected, ("Empty it", "")])


@pytest.mark.parametrize(
    ("plural", "forms", "expected"),
    [
        (POLISH, "plik\0pliki\0plików", ["plik", "plików"]),
        ("nplurals=1; plural=0;", "ファイル", [None, "ファイル"]),
        ("nplurals=INTEGER; plural=EXPRESSION;", "Datei\0Dateien", ["Datei", "Dateien"]),
        ("", "Datei\0Dateien", ["Datei", "Dateien"]),
    ],
)
def test_the_header_says_which_form_is_the_plural(plural: str, forms: str, expected: list[str | None]) -> None:
    content = mo([("a file\0some files", forms)], head=header(plural=plural))
    assert pairs(content) == [
        (message, form) for message, form in zip(("a file", "some files"), expected, strict=True) if form is not None
    ]


def test_fuzzy_translations_are_left_out_and_counted(tmp_path: Path) -> None:
    checked = [f'msgid "{message}"\nmsgstr "{translation}"\n' for message, translation in SENTENCES]
    fuzzy = '#, c-format, fuzzy\n#| msgid "Save %s"\nmsgid "Save it as %s"\nmsgstr "Speichern %s"\n'
    (tmp_path / "de.po").write_bytes(po(fuzzy, *checked))
    corpus = read(tmp_path)
    assert all_pairs(corpus) == set(SENTENCES)
    assert corpus.counts["fuzzy"] == 1


def test_what_is_no_sentence_is_left_out_and_repeats_are_merged(tmp_path: Path) -> None:
    others = [
        ("Open", "Öffnen"),  # no space
        ("3 / 4", "3 / 4"),  # no letter
        ("Close it", ""),
        ("A\nmessage  of\ttwo lines\n", "Eine Nachricht\nin zwei Zeilen"),
        ("Very long " * 200, "Sehr lang"),
    ]
    (tmp_path / "one.mo").write_bytes(mo([*SENTENCES, *others]))
    (tmp_path / "two.mo").write_bytes(mo(SENTENCES[:7]))
    (tmp_path / "README.txt").write_text("not a catalog")
    corpus = read(tmp_path)
    assert all_pairs(corpus) == {*SENTENCES, ("A message of two lines", "Eine Nachricht in zwei Zeilen")}
    assert corpus.counts == {
        "catalogs": 2,
        "messages": 60 + 5 + 7,
        "fuzzy": 0,
        "not translated": 1,
        "no sentence": 2,
        "too long a text": 1,
        "repeated": 7,
        "different pairs": 61,
    }


def test_no_source_is_in_two_splits(tmp_path: Path) -> None:
    """In whatever way it is written, and whatever its translations are."""
    variants = [("_Open the file number {}…", "Ö {}"), ("OPEN the file, number {}", "Auf {}"), ("{}", "{}")]
    for number, (message, translation) in enumerate(variants[:2]):
        entries = [(message.format(n), translation.format(n)) for n in range(60)]
        (tmp_path / f"{number}.mo").write_bytes(mo(entries))
    (tmp_path / "2.mo").write_bytes(mo(SENTENCES))
    (tmp_path / "3.mo").write_bytes(mo(SENTENCES))
    corpus = read(tmp_path)

    def letters(texts: object) -> list[str]:
        return ["".join(filter(str.isalnum, text)).casefold() for text in texts]  # type: ignore[attr-defined]

    train, valid, test = (letters(each.source) for each in (corpus.train, corpus.valid, *corpus.tests))
    assert len(valid) == len(test) == len(set(valid)) == len(set(test)) == 60 // messages.HELD_OUT
    assert not {*train} & {*valid}
    assert not {*train} & {*test}
    assert not {*valid} & {*test}
    assert len(train) == 3 * len(set(train))
    # The most frequent translation is that of two catalogs.
    assert {*zip(corpus.tests[0].source, corpus.tests[0].target, strict=True)} <= {*SENTENCES}
    assert read(tmp_path).sha256() == corpus.sha256()


def test_both_directions(tmp_path: Path) -> None:
    (tmp_path / "a.mo").write_bytes(mo(SENTENCES))
    assert all_pairs(read(tmp_path, "de", "en")) == {(german, english) for english, german in SENTENCES}
    with pytest.raises(UserError, match=r"data\.source or data\.target must be en; got 'fr' and 'de'"):
        read(tmp_path, "fr", "de")


def test_the_language_is_that_of_the_folder_else_of_the_header_else_of_the_name(tmp_path: Path) -> None:
    for language in ("de", "fr", "pt_BR"):
        installed = tmp_path / "locale" / language / "LC_MESSAGES"
        installed.mkdir(parents=True)
        (installed / "program.mo").write_bytes(mo([(a, f"{language} {b}") for a, b in SENTENCES], head=header()))
    assert {b[:3] for _, b in all_pairs(read(tmp_path))} == {"de "}
    assert {b[:3] for _, b in all_pairs(read(tmp_path, target="pt-BR"))} == {"pt_"}
    sources = tmp_path / "po"
    sources.mkdir()
    stated = [f'msgid "{a}"\nmsgstr "{b}"\n' for a, b in SENTENCES]
    (sources / "german.po").write_bytes(po(*stated))
    (sources / "sv.po").write_bytes(po(*stated, language=""))
    assert all_pairs(read(sources)) == all_pairs(read(sources, target="sv")) == set(SENTENCES)
    assert read(sources).counts["catalogs"] == 1
    with pytest.raises(UserError, match=r"must hold 20 different messages in English and 'it' or more; it holds 0 "):
        read(sources, target="it")


@pytest.mark.parametrize("form", ["xz", "gz", ""])
def test_packages(tmp_path: Path, form: str) -> None:
    files = {
        "./usr/share/locale/fr/LC_MESSAGES/program.mo": b"not read",
        INSTALLED: mo(SENTENCES),
        "./usr/share/doc/program.txt": b"",
    }
    path = tmp_path / "program_1.0_all.deb"
    path.write_bytes(package(tar(files), form))
    assert all_pairs(read(path)) == all_pairs(read(tmp_path)) == set(SENTENCES)


def test_packages_in_zstd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ubuntu's. A frame of one raw block, so that no compressor is needed."""
    data = tar({INSTALLED: mo(SENTENCES)})
    frame = b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", len(data))
    frame += struct.pack("<I", 1 | len(data) << 3)[:3] + data
    path = tmp_path / "program.deb"
    path.write_bytes(ar({"debian-binary": b"2.0\n", "data.tar.zst": frame}))
    monkeypatch.setattr(deb.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    with pytest.raises(UserError, match=r"program\.deb is packed with zstd.*pip install backports\.zstd.*dpkg-deb"):
        read(path)
    monkeypatch.undo()
    try:
        from compression import zstd  # noqa: F401
    except ImportError:
        pytest.importorskip("backports.zstd")
    assert all_pairs(read(path)) == set(SENTENCES)


def test_msgfmt_agrees(tmp_path: Path) -> None:
    """The bytes that the tests above take for msgfmt's."""
    if (msgfmt := shutil.which("msgfmt")) is None:
        pytest.skip("there is no msgfmt here")
    text = po(
        'msgctxt "verb"\nmsgid "%d file"\nmsgid_plural "%d files"\nmsgstr[0] "%d Datei"\nmsgstr[1] "%d Dateien"\n',
        'msgid "Change size"\nmsgstr "Größe ändern"\n',
    )
    (tmp_path / "a.po").write_bytes(text)
    subprocess.run([msgfmt, "--no-hash", "-o", tmp_path / "a.mo", tmp_path / "a.po"], check=True)
    ours = mo([("verb\4%d file\0%d files", "%d Datei\0%d Dateien"), ("Change size", "Größe ändern")])
    assert pairs((tmp_path / "a.mo").read_bytes()) == pairs(ours)


@pytest.mark.parametrize("task", ["translation", "transformer"])
def test_a_task_takes_messages(task: str, tmp_path: Path) -> None:
    (tmp_path / "program.mo").write_bytes(mo(SENTENCES))
    recipe = changed(tasks.recipe(task, "medium"), ["data.vocabulary=300", "train.batch=10"])
    first, again = (tasks.load(task, path, recipe) for path in (tmp_path, tmp_path / "program.mo"))
    for loaded in (first, again):
        details = loaded.source.details
        assert (details["train pairs"], details["test pairs"], details["different pairs"]) == (54, 3, 60)
        assert details["text"] == "plain"
        assert [metric.key for metric in loaded.metrics] == ["bleu", "chrf", "exact"]
    assert first.source.sha256 == again.source.sha256
    assert set(first.evaluate(first.model("rms", "rmsnorm").eval(), "test")) >= {"bleu", "chrf", "loss"}


def test_only_translation_has_the_medium_size() -> None:
    assert tasks.sizes("translation") == ("small", "medium", "paper")
    with pytest.raises(UserError, match=r"--size must be small or paper for language; got medium"):
        tasks.recipe("language", "medium")


def test_a_catalog_states_what_it_lacks() -> None:
    assert catalogs.is_catalog(Path("a.gmo"))
    assert not catalogs.is_catalog(Path("a.pot"))
    assert Catalog("a", {}, []).entries == []


def test_the_languages_are_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "program.mo").write_bytes(mo(SENTENCES))
    small = ["--set", "data.vocabulary=300", "model.hidden=8", "model.embedding=8", "train.batch=4", "--steps", "1"]
    common = ["train", "translation", "--norm", "rms", "--data", str(tmp_path), "--out", str(tmp_path / "runs")]
    assert main([*common, "--source", "de", "--target", "en", *small]) == 0
    (record,) = (tmp_path / "runs").glob("*.jsonl")
    assert json.loads(record.read_text())["identity"]["source"]["details"]["direction"] == "de-en"
    assert main([*common, "--target", "it", *small]) != 0
    assert "English and 'it'" in capsys.readouterr().err
    assert main(["train", "language", "--norm", "rms", "--target", "de"]) != 0
    assert "--source and --target are of translation and transformer; got language" in capsys.readouterr().err
