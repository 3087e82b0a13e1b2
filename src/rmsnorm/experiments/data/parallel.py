"""Parallel text in the forms in which WMT's sets are handed around.

A folder gives a training, a validation and one or more test sets. Each is a pair of text files, one sentence a line::

    train.en                          train.de                          Stanford's, fairseq's
    train.tok.clean.bpe.32000.en      train.tok.clean.bpe.32000.de      NVIDIA's GNMT: BPE is undone
    newstest2014.tok.bpe.32000.en     newstest2014.tok.bpe.32000.de

or, for validation and test, a pair of WMT's own ``.sgm`` files (``newstest2014-deen-src.en.sgm`` and
``newstest2014-deen-ref.de.sgm``). newstest2014 and newstest2017 (test) and newstest2013 (validation) are taken from
sacrebleu's cache when the folder has none and the cache does; nothing is downloaded.

A file that is damaged is an error that names the file and the record; nothing is skipped but training pairs with an
empty side, which are counted.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rmsnorm.errors import UserError
from rmsnorm.experiments.data.lines import read_lines
from rmsnorm.experiments.data.sgm import read_sgm

TRAIN = ("train",)
VALID = ("valid", "dev", "newstest_dev", "newstest2013")
TEST = ("test", "newstest2014", "newstest2017")
_CACHED = {"newstest2013": "wmt13", "newstest2014": "wmt14/full", "newstest2017": "wmt17"}
"""The name of sacrebleu's set, which is also its folder."""

_BPE_JOINT = re.compile(r"(@@ )|(@@ ?$)")
_BPE_SHARE = 10
"""A file is taken for the output of subword-nmt if one line in so many has its joints."""


@dataclass(frozen=True)
class Pairs:
    """Sentences and their translations: ``target[i]`` is the reference of ``source[i]``."""

    name: str
    source: list[str]
    target: list[str]
    tokenised: bool = False
    """Words and punctuation apart (Moses): BLEU of such text is not comparable to BLEU of plain text."""
    without_text: int = 0
    """Training pairs left out because one side was empty."""


@dataclass(frozen=True)
class Corpus:
    train: Pairs
    valid: Pairs
    tests: tuple[Pairs, ...]

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for pairs in (self.train, self.valid, *self.tests):
            for side in (pairs.source, pairs.target):
                digest.update(f"{pairs.name} {len(side)} ".encode())
                digest.update("\n".join(side).encode())
        return digest.hexdigest()


def read_corpus(folder: Path, source: str = "en", target: str = "de") -> Corpus:
    """Read the sets of ``folder`` for one direction.

    Raises:
        UserError: a set is missing, or a file is not what it should be; names file and record.
    """
    if not folder.is_dir():
        raise UserError(
            f"--data must name the folder of the parallel text; {str(folder)!r} is no folder. Check the spelling."
        )
    languages = (source, target)
    train = _find(folder, TRAIN, languages)
    valid = _find(folder, VALID, languages, train)
    tests = _find(folder, TEST, languages, train)
    for found, stems, what in ((train, TRAIN, "training"), (valid, VALID, "validation"), (tests, TEST, "test")):
        if not found:
            names = ", ".join(f"{stem}.{source} and {stem}.{target}" for stem in stems)
            raise UserError(
                f"{folder}: there must be a {what} set; none is there. Put in one of: {names}"
                + (" (or WMT's .sgm files)." if found is not train else ".")
            )
    corpus = Corpus(train[0], valid[0], tuple(tests))
    for pairs in (corpus.valid, *corpus.tests):
        if pairs.tokenised != corpus.train.tokenised:
            kinds = {True: "tokenised", False: "plain"}
            raise UserError(
                f"{folder}: the sets must be all plain or all tokenised; train is {kinds[corpus.train.tokenised]} and "
                f"{pairs.name} is {kinds[pairs.tokenised]}. Put in both in one form."
            )
    return corpus


def _find(
    folder: Path, stems: tuple[str, ...], languages: tuple[str, str], like: list[Pairs] | None = None
) -> list[Pairs]:
    """Every set of ``stems`` that is there, each in the first of its forms; for ``like`` forms of its kind first."""
    found = []
    for stem in stems:
        forms = list(_forms(folder, stem, languages))
        if like:
            forms.sort(key=lambda form: form.tokenised != like[0].tokenised)
        if forms:
            found.append(forms[0].read(skip_empty=stems is TRAIN))
        elif (pair := _cached(stem, languages)) is not None:
            found.append(pair.read(skip_empty=False))
    return found


@dataclass(frozen=True)
class _Form:
    """Two files that make a set."""

    name: str
    paths: tuple[Path, Path]

    @property
    def tokenised(self) -> bool:
        return ".tok" in self.paths[0].name or ".bpe" in self.paths[0].name

    def read(self, skip_empty: bool) -> Pairs:
        if self.paths[0].suffix == ".sgm":
            source, target = read_sgm(*self.paths)
            return Pairs(self.name, source, target)
        return read_text(self.name, *self.paths, skip_empty=skip_empty)


def _forms(folder: Path, stem: str, languages: tuple[str, str]) -> Iterator[_Form]:
    """The pairs of files of a set, plain text first: fewer steps of somebody's preparation come before more."""
    names = sorted((path.name for path in folder.iterdir()), key=lambda name: (len(name), name))
    pattern = re.compile(rf"{re.escape(stem)}((?:\.(?:tok|clean|bpe|\d+))*)\.(\w+)")
    forms: dict[str, set[str]] = {}
    for name in names:
        if (match := pattern.fullmatch(name)) and match[2] in languages:
            forms.setdefault(match[1], set()).add(match[2])
    for form, present in forms.items():
        if missing := sorted(set(languages) - present):
            here = f"{stem}{form}.{present.pop()}"
            raise UserError(
                f"{folder / here} must have its other side; {stem}{form}.{missing[0]} is not there. Put it in."
            )
        yield _Form(stem, (folder / f"{stem}{form}.{languages[0]}", folder / f"{stem}{form}.{languages[1]}"))

    source, target = languages
    sgm = re.compile(rf"{re.escape(stem)}(-\w+)?-src\.{re.escape(source)}\.sgm")
    for name in names:
        if match := sgm.fullmatch(name):
            reference = folder / f"{stem}{match[1] or ''}-ref.{target}.sgm"
            if not reference.is_file():
                raise UserError(f"{folder / name} must have its reference; {reference.name} is not there. Put it in.")
            yield _Form(stem, (folder / name, reference))


def _cached(stem: str, languages: tuple[str, str]) -> _Form | None:
    """The set as sacrebleu keeps it after a download of its own."""
    if stem not in _CACHED:
        return None
    from sacrebleu.utils import SACREBLEU_DIR

    name = _CACHED[stem]
    base = Path(SACREBLEU_DIR, name, f"{name.replace('/', '_')}.{'-'.join(languages)}")
    paths = base.with_name(f"{base.name}.src"), base.with_name(f"{base.name}.ref")
    return _Form(stem, paths) if all(map(os.path.isfile, paths)) else None


def read_text(name: str, source: Path, target: Path, *, skip_empty: bool = False) -> Pairs:
    """Two files of one sentence a line, of which the same number must be there.

    ``skip_empty``: a pair with an empty line is left out and counted; else it is an error.
    """
    sides = [read_lines(path) for path in (source, target)]
    if len(sides[0]) != len(sides[1]):
        raise UserError(
            f"{source} and {target} must have the same number of lines; they have {len(sides[0]):,} and "
            f"{len(sides[1]):,}. One of them is cut short or belongs to another set; get both anew."
        )
    undone = [
        ".bpe" in path.name or _looks_like_bpe(lines) for path, lines in zip((source, target), sides, strict=True)
    ]
    sides = [
        [_BPE_JOINT.sub("", line) for line in lines] if undo else lines
        for lines, undo in zip(sides, undone, strict=True)
    ]
    whole = [number for number, pair in enumerate(zip(*sides, strict=True)) if all(pair)]
    empty = len(sides[0]) - len(whole)
    if empty and not skip_empty:
        number = next(number for number, pair in enumerate(zip(*sides, strict=True)) if not all(pair))
        path = target if sides[0][number] else source
        raise UserError(
            f"{path}, line {number + 1:,}: a sentence must stand there; the line is empty. Get the file anew."
        )
    if not whole:
        raise UserError(f"{source} and {target} must hold sentences; they hold none. Get both anew.")
    if empty:
        sides = [[side[number] for number in whole] for side in sides]
    return Pairs(name, sides[0], sides[1], tokenised=any(undone) or ".tok" in source.name, without_text=empty)


def _looks_like_bpe(lines: list[str]) -> bool:
    return _BPE_SHARE * sum("@@ " in line for line in lines) >= len(lines)
