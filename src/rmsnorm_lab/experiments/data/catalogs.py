"""The catalogs of gettext, compiled (``.mo``) and as text (``.po``): messages and their translations."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from gettext import c2py
from pathlib import PurePath

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.data.lines import BOM
from rmsnorm_lab.experiments.data.mo import read_mo

COMPILED, TEXT = (".mo", ".gmo"), (".po",)
_FOLDER = "LC_MESSAGES"
"""Catalogs are installed as ``LANGUAGE/LC_MESSAGES/PROGRAM.mo``."""
Form = Callable[[int], int]
"""Number of what a message counts -> number of its plural form."""
_MANY = 100
"""The plural of a message is paired with the form that the translation uses for this number. (For 2 many Slavic
languages use a form of its own.)"""
_CHARSET = re.compile(rb"charset=([\w.:+-]+)")
_NO_STRING = re.compile(r'^(?![ \t]*#)[^\n]*[^"\s][ \t\r]*$', re.MULTILINE)
"""A line of a ``.po`` file that is neither empty nor a comment ends a string."""


@dataclass(frozen=True)
class Entry:
    """A message of a catalog, without its context."""

    message: str
    plural: str
    """Empty where the message has none."""
    forms: tuple[str, ...]
    """Translations: one, or one for each plural form."""
    fuzzy: bool = False
    """The translation was copied from a similar message by a tool, and is unchecked."""


@dataclass(frozen=True)
class Catalog:
    """The entries of a file and what its header says."""

    name: str
    header: Mapping[str, str]
    """In lower case: "language", "plural-forms"."""
    entries: list[Entry]

    def pairs(self) -> Iterator[tuple[str, str]]:
        """(message, translation) of every entry that is not fuzzy; the translation may be empty.

        A message with a plural gives two: the singular with the form for 1, and the plural with the form for many.
        """
        of = self._form()
        for entry in self.entries:
            if entry.fuzzy:
                continue
            if not entry.plural or not any(entry.forms):  # of one form, or of none
                yield entry.message, entry.forms[0]
                continue
            for text, number in ((entry.message, 1), (entry.plural, _MANY)):
                if number == 1 and of(1) == of(_MANY):
                    continue  # the language has no singular
                if not 0 <= of(number) < len(entry.forms):
                    raise UserError(
                        f"{self.name}: {text[:60]!r} must have a translation for {number} of what it counts, which is "
                        f"form {of(number)} by the header's Plural-Forms; it has {len(entry.forms)} forms. "
                        "Mend the header."
                    )
                yield text, entry.forms[of(number)]

    def _form(self) -> Form:
        """The header's rule of plural forms."""
        stated = self.header.get("plural-forms", "")
        found = re.search(r"plural\s*=\s*([^;]+)", stated)
        if "EXPRESSION" in stated or found is None:  # a template's, or none: gettext's own choice
            return c2py("n != 1")
        try:
            form: Form = c2py(found[1].strip())
            form(1), form(_MANY)
        except (ValueError, ArithmeticError, RecursionError) as error:
            raise UserError(
                f"{self.name}: Plural-Forms in the header must be an expression of n in C; got {found[1][:60]!r}: "
                f"{error}. Mend the header."
            ) from None
        return form


def is_catalog(path: PurePath) -> bool:
    """Whether a file's name is that of a catalog."""
    return path.suffix in (*COMPILED, *TEXT)


def may_be_in(language: str, path: PurePath) -> bool:
    """Whether a catalog can be in ``language``. Only a folder LANGUAGE/LC_MESSAGES rules it out."""
    return path.parent.name != _FOLDER or _same(path.parent.parent.name, language)


def is_in(language: str, path: PurePath, catalog: Catalog) -> bool:
    """Whether a catalog is in ``language``: by its folder, else by its header, else by its name."""
    if path.parent.name == _FOLDER:
        return may_be_in(language, path)
    return _same(catalog.header.get("language") or path.stem, language)


def _same(ours: str, theirs: str) -> bool:
    return ours.replace("-", "_") == theirs.replace("-", "_")


def read_catalog(content: bytes, name: str) -> Catalog:
    """The catalog in a file called ``name``.

    Raises:
        UserError: the file is damaged, or is not in the encoding that its header names.
    """
    return _text(content, name) if PurePath(name).suffix in TEXT else _compiled(content, name)


def _compiled(content: bytes, name: str) -> Catalog:
    raw = read_mo(content, name)
    header = next((translation for message, translation in raw if not message), b"")
    charset, entries = _charset(header), []
    for message, translation in raw:
        if message:
            text = _decoded(message, charset, name).rpartition("\4")[2]  # the context comes before \4
            singular, _, plural = text.partition("\0")
            entries.append(Entry(singular, plural, tuple(_decoded(translation, charset, name).split("\0"))))
    return Catalog(name, _fields(_decoded(header, charset, name)), entries)


def _text(content: bytes, name: str) -> Catalog:
    import polib

    text = _decoded(content, _charset(content), name).removeprefix(BOM)
    if wrong := _NO_STRING.search(text):
        raise UserError(
            f"{name}, line {text.count(chr(10), 0, wrong.start()) + 1:,}: a line must be a comment or end in a quote; "
            f"got {wrong[0][:60]!r}. The file may be cut short; get it again."
        )
    try:
        found = polib.pofile(text + "\n")  # without a line feed polib could take the text for the name of a file
    except (OSError, ValueError, IndexError, KeyError, AttributeError) as error:
        raise UserError(f"{name} must be a catalog of gettext (.po); {error}. Mend it (msgfmt --check).") from None
    entries = [
        Entry(
            entry.msgid,
            entry.msgid_plural,
            tuple(entry.msgstr_plural[index] for index in sorted(entry.msgstr_plural)) or (entry.msgstr,),
            entry.fuzzy,
        )
        for entry in found
        if not entry.obsolete and entry.msgid
    ]
    if not entries and not found.metadata:
        raise UserError(f"{name} must be a catalog of gettext (.po); it holds no message. Get it again.")
    return Catalog(name, {key.lower(): value for key, value in found.metadata.items()}, entries)


def _charset(header: bytes) -> str:
    """The encoding that a header names. Templates say CHARSET; gettext takes no statement for ASCII."""
    found = _CHARSET.search(header)
    stated = found[1].decode("latin-1") if found else "ascii"
    return "ascii" if stated == "CHARSET" else stated


def _decoded(content: bytes, charset: str, name: str) -> str:
    try:
        text = content.decode(charset)
        text.encode()  # some encodings can state half of a character
    except UnicodeError as error:
        raise UserError(
            f"{name} must be in {charset}, as its header says; it is not: {error}. "
            "Mend the header, or leave the file out."
        ) from None
    except LookupError:
        raise UserError(
            f"{name} must be in an encoding that Python knows; its header says {charset!r}. "
            "Convert it (msgunfmt, then msgconv -t UTF-8)."
        ) from None
    return text


def _fields(header: str) -> dict[str, str]:
    lines = (line.partition(":") for line in header.splitlines())
    return {name.strip().lower(): value.strip() for name, _, value in lines}
