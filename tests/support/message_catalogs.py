"""The formats of gettext and Debian, written byte by byte."""

import gzip
import io
import lzma
import struct
import tarfile
from pathlib import Path

from rmsnorm_lab.experiments.data.catalogs import read_catalog
from rmsnorm_lab.experiments.data.corpus import Corpus
from rmsnorm_lab.experiments.data.loading import Loading
from rmsnorm_lab.experiments.data.messages import Messages

GERMANIC = "nplurals=2; plural=(n != 1);"
SENTENCES = [(f"Open the file number {n}.", f"Die Datei Nummer {n} öffnen.") for n in range(60)]
INSTALLED = "./usr/share/locale/de/LC_MESSAGES/program.mo"


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


def read(path: Path, source: str = "en", target: str = "de") -> Corpus:
    return Messages(path, source, target).read(Loading("test"))


def pairs(content: bytes, name: str = "a.mo") -> list[tuple[str, str]]:
    return list(read_catalog(content, name).pairs())
