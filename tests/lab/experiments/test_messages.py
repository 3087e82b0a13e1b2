"""Catalogs of messages as parallel text: the formats of gettext and Debian, written here byte by byte, and damaged."""

import contextlib
import gzip
import io
import json
import lzma
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmsnorm.cli import main
from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments import tasks
from rmsnorm_lab.experiments.data import catalogs, deb, messages
from rmsnorm_lab.experiments.data.catalogs import Catalog, read_catalog
from rmsnorm_lab.experiments.data.corpus import Corpus
from rmsnorm_lab.experiments.data.loading import Loading
from rmsnorm_lab.experiments.data.messages import Messages
from rmsnorm_lab.experiments.data.mo import read_mo
from rmsnorm_lab.experiments.recipes.settings import changed

GERMANIC = "nplurals=2; plural=(n != 1);"
POLISH = "nplurals=3; plural=(n==1 ? 0 : n%10>=2 && n%10<=4 && (n%100<10 || n%100>=20) ? 1 : 2);"
SENTENCES = [(f"Open the file number {n}.", f"Die Datei Nummer {n} öffnen.") for n in range(60)]


def header(charset: str = "UTF-8", plural: str = GERMANIC, language: str = "de") -> str:
    return f"Language: {language}\nContent-Type: text/plain; charset={charset}\nPlural-Forms: {plural}\n"


def mo(entries: list[tuple[str, str]], charset: str = "UTF-8", order: str = "<", head: str | None = None) -> bytes:
    """What msgfmt writes: sorted messages, each string with its length, its offset and a zero byte."""
    rows = sorted(
        (message.encode(charset), translation.encode(charset))
        for message, translation in [("", header(charset) if head is None else head), *entries]
    )
    start, body, tables = 28 + 16 * len(rows), b"", [b"", b""]
    for side in (0, 1):
        for row in rows:
            tables[side] += struct.pack(f"{order}2I", len(row[side]), start + len(body))
            body += row[side] + b"\0"
    words = (0x950412DE, 0, len(rows), 28, 28 + 8 * len(rows), 0, 28 + 16 * len(rows))
    return struct.pack(f"{order}7I", *words) + tables[0] + tables[1] + body


def po(*entries: str, charset: str = "UTF-8", plural: str = GERMANIC, language: str = "de") -> bytes:
    lines = "".join(f'"{line}\\n"\n' for line in header(charset, plural, language).splitlines())
    return "\n".join([f'msgid ""\nmsgstr ""\n{lines}', *entries]).encode(charset)


def ar(members: dict[str, bytes]) -> bytes:
    found = b"!<arch>\n"
    for name, content in members.items():
        found += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode() + content
        found += b"\n" * (len(content) % 2)
    return found


def tar(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        folder = tarfile.TarInfo("./usr")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("./usr/share/locale/de/LC_MESSAGES/link.mo")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return made.getvalue()


def package(data: bytes, form: str = "xz") -> bytes:
    packed = {"xz": lzma.compress, "gz": gzip.compress, "": bytes}[form](data)
    return ar({"debian-binary": b"2.0\n", "control.tar.xz": b"odd", f"data.tar{'.' * bool(form)}{form}": packed})


INSTALLED = "./usr/share/locale/de/LC_MESSAGES/program.mo"


def read(path: Path, source: str = "en", target: str = "de") -> Corpus:
    return Messages(path, source, target).read(Loading("test"))


def all_pairs(corpus: Corpus) -> set[tuple[str, str]]:
    sets = (corpus.train, corpus.valid, *corpus.tests)
    return {pair for each in sets for pair in zip(each.source, each.target, strict=True)}


def pairs(content: bytes, name: str = "a.mo") -> list[tuple[str, str]]:
    return list(read_catalog(content, name).pairs())


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


def offset_outside(content: bytes) -> bytes:
    return content[:32] + struct.pack("<I", len(content)) + content[36:]


def table_outside(content: bytes) -> bytes:
    return content[:12] + struct.pack("<I", len(content) - 4) + content[16:]


def many_strings(content: bytes) -> bytes:
    return content[:8] + struct.pack("<I", 1 << 29) + content[12:]


def one_string_many_times(_: bytes) -> bytes:
    """40 kB that state 10 GB."""
    count = 2000
    start = 28 + 8 * count
    table = struct.pack("<2I", 5_000_000, start) * count
    return struct.pack("<7I", 0x950412DE, 0, count, 28, 28, 0, 0) + table + b"x" * 5_000_000 + b"\0"


def without_zero_byte(content: bytes) -> bytes:
    length, offset = struct.unpack("<2I", content[28 + 8 : 28 + 16])
    return content[: offset + length] + b"x" + content[offset + length + 1 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"", r"must be a compiled catalog .*begins with b''"),
        (lambda content: b"PK\3\4" + content[4:], r"must be a compiled catalog"),
        (lambda content: content[:20], r"must be a whole catalog; .*20 bytes"),
        (lambda content: content[:60], r"its table of 61 strings ends outside"),
        (lambda content: content[:-1], r"a string ends outside"),
        (lambda content: content[: len(content) // 2], r"a string ends outside"),
        (lambda content: content[:4] + struct.pack("<I", 2 << 16) + content[8:], r"revision 0 or 1 .*it is of .*2"),
        (offset_outside, r"a string ends outside"),
        (table_outside, r"its table of 61 strings ends outside"),
        (many_strings, r"its table of 536,870,912 strings ends outside"),
        (one_string_many_times, r"a string ends outside"),
        (without_zero_byte, r"a string does not end in a zero byte"),
    ],
)
def test_a_damaged_compiled_catalog_is_named(tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    (tmp_path / "bad.mo").write_bytes(damage(mo(SENTENCES)))
    with pytest.raises(UserError, match=rf"bad\.mo.*{message}"):
        read(tmp_path)


@given(st.binary(max_size=200), st.integers(0, 200), st.integers(1, 255))
@settings(max_examples=200, deadline=None)
def test_no_bytes_make_the_reader_fail_otherwise(noise: bytes, place: int, flip: int) -> None:
    content = bytearray(mo(SENTENCES[:3]))
    content[place % len(content)] ^= flip
    for made in (bytes(content), bytes(content[:28]) + noise, noise):
        with contextlib.suppress(UserError):
            for message, translation in read_mo(made, "a.mo"):
                assert len(message) + len(translation) <= 2 * len(made)
            pairs(made)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (mo([("Change size", "Größe")], "latin-1", head=header("UTF-8")), "a.mo", r"must be in UTF-8, as its header"),
        (mo([("Change size", "Größe")], head=header("ASCII")), "a.mo", r"must be in ASCII, as its header says"),
        (mo([("Change size", "Größe")], head=""), "a.mo", r"must be in ascii, as its header says"),
        (mo([("Change size", "x")], head=header("VISCII-9")), "a.mo", r"its header says 'VISCII-9'.*msgconv"),
        (mo([("Change size", "x")], head=header("rot13")), "a.mo", r"an encoding that Python knows"),
        (mo([("Change size", "+2AA-")], head=header("UTF-7")), "a.mo", r"must be in UTF-7.*surrogates"),
        (mo([("a\0b", "x\0y")], head=header(plural="nplurals=2; plural=n<<9;")), "a.mo", r"expression of n in C"),
        (mo([("a\0b", "x\0y")], head=header(plural="nplurals=2; plural=n/0;")), "a.mo", r"expression of n in C"),
        (mo([("a\0b", "x\0y")], head=header(plural="nplurals=2; plural=n;")), "a.mo", r"form 100 by .*2 forms"),
        (mo([("a\0b", "x\0y")], head=header(plural="nplurals=2; plural=n-2;")), "a.mo", r"form -1 by .*2 forms"),
        (po('msgid "a b"\nmsgstr "ö"\n').decode().encode("latin-1"), "a.po", r"must be in UTF-8, as its header"),
        (
            po('msgid "a b"\nmsgstr "unend'),
            "a.po",
            r", line 8: a line must be a comment or end in a quote; got .*unend",
        ),
        (po('msgid "a b"\nmsgstr[x] "c"\n'), "a.po", r"must be a catalog of gettext \(\.po\); Syntax error .*line 8"),
        (po('msgstr "a b"\n"c"\nmsgfoo "x"\n'), "a.po", r"must be a catalog of gettext"),
        (b"hello", "a.po", r", line 1: a line must be a comment"),
        (b"", "a.po", r"it holds no message"),
        (b"/etc/hostname", "a.po", r", line 1: a line must be a comment"),
    ],
)
def test_wrong_catalogs_are_named(content: bytes, name: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"a\.[mp]o.*{message}"):
        pairs(content, name)


def lying_length(content: bytes) -> bytes:
    place = content.index(b"data.tar.xz") + 48
    return content[:place] + b"9999999999" + content[place + 10 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"", r"must be a Debian package"),
        (lambda content: content[:8], r"holds no data\.tar"),
        (lambda content: content[:100], r"holds no data\.tar"),
        (lambda content: content[: len(content) // 2], r"data\.tar\.xz is cut short"),
        (lying_length, r"data\.tar\.xz is cut short"),
        (lambda content: content.replace(b"data.tar.xz", b"data.tar.rz"), r"packed with xz, zstd or gzip; .*'rz'"),
        (lambda content: content.replace(b"data.tar.xz ", b"data.tar.gz "), r"it is damaged: Not a gzipped file"),
        (lambda content: content[:-60] + bytes(60), r"must be a whole Debian package; it is damaged"),
    ],
)
def test_a_damaged_package_is_named(tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    path = tmp_path / "bad.deb"
    path.write_bytes(damage(package(tar({INSTALLED: mo(SENTENCES)}))))
    with pytest.raises(UserError, match=rf"bad\.deb.* {message}"):
        read(tmp_path)


def test_a_damaged_catalog_in_a_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.deb").write_bytes(package(tar({INSTALLED: mo(SENTENCES)[:-9]})))
    with pytest.raises(UserError, match=r"a\.deb, \./usr/share/locale/de/LC_MESSAGES/program\.mo must be a whole"):
        read(tmp_path)


def endless_member() -> bytes:
    """The header of a catalog of 100 GB, with the beginning of its content."""
    member = tarfile.TarInfo(INSTALLED)
    member.size = 100 << 30
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(10_000)


def endless_header() -> bytes:
    """A name of 3 GB."""
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 3 << 30
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(10_000)


def endless_files() -> bytes:
    """A film of 100 GB before the catalog."""
    member = tarfile.TarInfo("./usr/share/film")
    member.size = 100 << 30
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(10_000)


@pytest.mark.parametrize(
    ("data", "limit"), [(endless_member(), "64"), (endless_header(), "64"), (endless_files(), "4,096")]
)
def test_endless_members_are_refused(tmp_path: Path, data: bytes, limit: str) -> None:
    (tmp_path / "a.deb").write_bytes(package(data))
    with pytest.raises(UserError, match=rf"a\.deb.* must hold at most {limit} MiB; it holds more"):
        read(tmp_path)


def test_many_small_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deb, "LARGEST_PACKAGE", 20_000)
    (tmp_path / "a.deb").write_bytes(package(tar({f"./{n}": b"" for n in range(50)})))
    with pytest.raises(UserError, match=r"a\.deb must hold at most"):
        read(tmp_path)


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
