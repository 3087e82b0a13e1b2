"""Catalogs and packages that are damaged, endless or of another kind are named."""

import contextlib
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from message_catalogs import INSTALLED, SENTENCES, header, mo, package, pairs, po, read, tar
from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.data import deb
from rmsnorm_lab.experiments.data.mo import read_mo


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
