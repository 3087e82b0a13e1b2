"""Parallel text from the message catalogs of programs: what people wrote in English, and what people made of it.

``--data`` names a catalog (``.mo``, ``.po``), a Debian package (``.deb``) or a folder of them, such as
``/usr/share/locale``. The messages are English, by gettext's convention; the catalogs of the other language are read. A
message without letters or without a space is no sentence and is left out, as is one without a checked translation.

The split is by message. Messages that differ only in case, punctuation or marks of shortcuts ("_Open File…", "Open
file") belong to the same set, so none of them is in two.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.data import catalogs, deb
from rmsnorm_lab.experiments.data.catalogs import Catalog
from rmsnorm_lab.experiments.data.corpus import Corpus, Pairs, Texts
from rmsnorm_lab.experiments.data.input_files import read_bytes, walk
from rmsnorm_lab.experiments.data.loading import Loading
from rmsnorm_lab.experiments.data.subwords import LONGEST

ENGLISH = "en"
PACKAGE = ".deb"
RULES = 1
"""Must be raised when the same catalogs give other pairs than before."""
HELD_OUT = 20
"""One message in this many is for validation, and another for the test, …"""
MOST_HELD_OUT = 2000
"""… but no more than this."""
LONGEST_TEXT = LONGEST - 1
"""Bytes of a text. A subword is a byte or more and the end takes one, so it can be translated with any subwords."""

Pair = tuple[str, str]


def is_messages(path: PurePath) -> bool:
    """Whether a file's name is that of a catalog or of a package."""
    return path.suffix == PACKAGE or catalogs.is_catalog(path)


def holds_messages(path: Path) -> bool:
    """Whether a path is a catalog or a package, or a folder with one."""
    if path.is_dir():
        return any(is_messages(PurePath(name)) for name in walk(path))
    return is_messages(path)


@dataclass(frozen=True)
class Messages:
    """The catalogs of a path in one direction; nothing has been read."""

    path: Path
    source: str
    target: str

    @property
    def settings(self) -> dict[str, str | int]:
        """What :meth:`read` depends on beside the files."""
        return {"source": self.source, "target": self.target, "rules": RULES}

    @property
    def language(self) -> str:
        """The language that is not English."""
        return self.source if self.target == ENGLISH else self.target

    def files(self) -> list[Path]:
        """Every file that :meth:`read` reads."""
        if not self.path.is_dir():
            return [self.path]
        found = [self.path / name for name in walk(self.path)]
        return [path for path in found if is_messages(path) and catalogs.may_be_in(self.language, path)]

    def read(self, loading: Loading) -> Corpus:
        """Read every catalog of the language, and split its messages.

        Raises:
            UserError: a file is damaged, or there are too few messages in the two languages.
        """
        if ENGLISH not in (self.source, self.target):
            raise UserError(
                "the messages of programs are in English, so data.source or data.target must be en; got "
                f"{self.source!r} and {self.target!r}. Pass --set data.source=en, or data.target=en."
            )
        counts: Counter[str] = Counter()
        found: Counter[Pair] = Counter()
        for catalog in self._catalogs(loading):
            counts["catalogs"] += 1
            counts["fuzzy"] += sum(entry.fuzzy for entry in catalog.entries)
            for message, translation in catalog.pairs():
                counts["messages"] += 1
                pair = " ".join(message.split()), " ".join(translation.split())
                if reason := _left_out(*pair):
                    counts[reason] += 1
                else:
                    found[pair if self.target != ENGLISH else pair[::-1]] += 1
        counts["repeated"] = found.total() - len(found)
        counts["different pairs"] = len(found)
        return _split(found, {name: counts[name] for name in COUNTS}, self)

    def _catalogs(self, loading: Loading) -> Iterator[Catalog]:
        files = self.files()
        for path in loading.over("reading catalogs", files, len(files)):
            if path.suffix == PACKAGE:
                for name, content in deb.members(path, self._is_wanted):
                    yield from self._of_language(PurePath(name), content, f"{path}, {name}")
            else:
                yield from self._of_language(path, read_bytes(path), str(path))

    def _is_wanted(self, name: str) -> bool:
        path = PurePath(name)
        return catalogs.is_catalog(path) and catalogs.may_be_in(self.language, path)

    def _of_language(self, path: PurePath, content: bytes, name: str) -> Iterator[Catalog]:
        catalog = catalogs.read_catalog(content, name)
        if catalogs.is_in(self.language, path, catalog):
            yield catalog


COUNTS = (
    "catalogs",
    "messages",
    "fuzzy",
    "not translated",
    "no sentence",
    "too long a text",
    "repeated",
    "different pairs",
)
"""What a record says of the messages that were read."""


def _left_out(message: str, translation: str) -> str:
    """Why a pair is left out; empty if it is not."""
    if not translation:
        return "not translated"
    if " " not in message or not any(map(str.isalpha, message)):
        return "no sentence"
    if max(len(message.encode()), len(translation.encode())) > LONGEST_TEXT:
        return "too long a text"
    return ""


def _split(found: Counter[Pair], counts: dict[str, int], messages: Messages) -> Corpus:
    """Sources in the order of the SHA-256 of their letters: the first are for the test, the next for validation."""
    of_source: dict[bytes, list[Pair]] = {}
    for pair in found:
        of_source.setdefault(_key(pair[0]), []).append(pair)
    held_out = min(len(of_source) // HELD_OUT, MOST_HELD_OUT)
    if not held_out:
        raise UserError(
            f"{messages.path} must hold {HELD_OUT} different messages in English and {messages.language!r} or more; it "
            f"holds {len(of_source)} (catalogs in that language: {counts['catalogs']}). "
            "Add catalogs, or set another language (--set data.target=fr)."
        )
    keys = sorted(of_source)

    def best(key: bytes) -> Pair:
        """The most frequent translation of the most frequent message: an evaluation asks each question once."""
        return min(of_source[key], key=lambda pair: (-found[pair], pair))

    test, valid = ([best(key) for key in keys[start : start + held_out]] for start in (0, held_out))
    train = sorted(pair for key in keys[2 * held_out :] for pair in of_source[key])
    of_training: Pairs[Texts] = Pairs("train", *_sides(train))
    return Corpus(of_training, Pairs("valid", *_sides(valid)), (Pairs("test", *_sides(test)),), counts)


def _sides(pairs: list[Pair]) -> tuple[list[str], list[str]]:
    return [source for source, _ in pairs], [target for _, target in pairs]


def _key(text: str) -> bytes:
    letters = "".join(filter(str.isalnum, text.casefold()))
    return hashlib.sha256(letters.encode()).digest()
