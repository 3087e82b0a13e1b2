"""Parallel text in the forms in which WMT's sets are published.

A folder gives a training, a validation and one or more test sets. Each is a pair of text files, one sentence a line::

    train.en                          train.de                          Stanford's (tokenised), fairseq's
    train.tok.clean.bpe.32000.en      train.tok.clean.bpe.32000.de      NVIDIA's GNMT: BPE is undone
    newstest2014.tok.bpe.32000.en     newstest2014.tok.bpe.32000.de

or, for validation and test, a pair of WMT's own ``.sgm`` files (``newstest2014-deen-src.en.sgm`` and
``newstest2014-deen-ref.de.sgm``). newstest2014 and newstest2017 (test) and newstest2013 (validation) are taken from
sacrebleu's cache when the folder has none and the cache does; nothing is downloaded.

Either all sets are plain or all are tokenised, because a network that writes one kind cannot be scored on the other.
The plain sets are taken if every set has a plain form, else the tokenised ones. A damaged file is an error that names
the file and the record. Only training pairs with an empty side are skipped, and they are counted.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.data.corpus import Corpus, Lines, Pairs, Texts, evaluation_pairs, training_pairs
from rmsnorm_lab.experiments.data.input_files import names_in
from rmsnorm_lab.experiments.data.loading import Loading
from rmsnorm_lab.experiments.data.sgm import read_sgm
from rmsnorm_lab.experiments.data.tokenised import has_bpe, looks_tokenised

TRAIN = ("train",)
VALID = ("valid", "dev", "newstest_dev", "newstest2013")
TEST = ("test", "newstest2014", "newstest2017")
_CACHED = {"newstest2013": "wmt13", "newstest2014": "wmt14/full", "newstest2017": "wmt17"}
"""The set's name in sacrebleu, which is also its folder in the cache."""
_KINDS = {False: "plain", True: "tokenised"}


@dataclass(frozen=True)
class Form:
    """The two files of a set, in one of its forms."""

    name: str
    paths: tuple[Path, Path]
    bpe: tuple[bool, bool] = (False, False)
    """Whether BPE must be undone, for each side."""
    tokenised: bool = False

    @classmethod
    def of_text(cls, name: str, source: Path, target: Path) -> "Form":
        """A pair of text files. Their names or first lines show whether they are tokenised and cut by BPE."""
        of_source, of_target = (".bpe" in path.name or has_bpe(path) for path in (source, target))
        tokenised = ".tok" in source.name or of_source or of_target or any(map(looks_tokenised, (source, target)))
        return cls(name, (source, target), (of_source, of_target), tokenised)

    def lines(self) -> tuple[Lines, Lines]:
        """Both sides of a pair of text files."""
        return Lines(self.paths[0], self.bpe[0]), Lines(self.paths[1], self.bpe[1])

    def read(self) -> Pairs[list[str]]:
        """A validation or test set."""
        if self.paths[0].suffix == ".sgm":
            return Pairs(self.name, *read_sgm(*self.paths))
        return evaluation_pairs(self.name, *self.lines(), self.tokenised)


@dataclass(frozen=True)
class Sets:
    """The sets of a folder. Only names and first lines have been looked at."""

    train: Form
    valid: Form
    tests: tuple[Form, ...]

    @property
    def settings(self) -> dict[str, str | int]:
        """What :meth:`read` depends on beside the files."""
        return {"train": self.train.paths[0].name}

    def files(self) -> list[Path]:
        """Every file that :meth:`read` reads."""
        return [path for form in (self.train, self.valid, *self.tests) for path in form.paths]

    def read(self, loading: Loading) -> Corpus:
        """Read and check every set."""
        train: Pairs[Texts] = training_pairs("train", *self.train.lines(), self.train.tokenised, loading)
        return Corpus(train, self.valid.read(), tuple(form.read() for form in self.tests))


def find(folder: Path, source: str = "en", target: str = "de") -> Sets:
    """The sets of ``folder`` for one direction: plain ones if every set has a plain form, else tokenised ones.

    Raises:
        UserError: a set is missing, lacks a side, or is only there in the other kind.
    """
    if not folder.is_dir():
        raise UserError(
            "--data must name the folder of the parallel text, or catalogs of messages (.mo, .po, .deb); "
            f"{str(folder)!r} is not a folder. Check the spelling."
        )
    languages = (source, target)
    forms = {stem: _forms(folder, stem, languages) for stem in (*TRAIN, *VALID, *TEST)}
    absent = [stem for stem in TEST if not forms[stem]]
    if not any(forms[stem] for stem in VALID):
        absent += VALID
    cached = {stem: [form] for stem in absent if (form := _cached(stem, languages)) is not None}
    for kind in _KINDS:
        fit = {stem: [form for form in own if form.tokenised == kind][:1] for stem, own in forms.items()}
        lacking = [stem for stem in TEST if forms[stem] and not fit[stem]]
        if not kind:
            fit |= cached
        train, valid, tests = ([form for stem in stems for form in fit[stem]] for stems in (TRAIN, VALID, TEST))
        if train and valid and tests and not lacking:
            return Sets(train[0], valid[0], tuple(tests))
    for stems, what in ((TRAIN, "training"), (VALID, "validation"), (TEST, "test")):
        if not any(forms[stem] or cached.get(stem) for stem in stems):
            names = ", ".join(f"{stem}.{source} and {stem}.{target}" for stem in stems)
            other = " (or WMT's .sgm files)."
            if stems is TRAIN:
                other = ", or pass a folder with catalogs of messages (.mo, .po, .deb) instead."
            raise UserError(f"{folder}: there must be a {what} set; none is there. Add one of: {names}{other}")
    said = ", ".join(
        f"{stem} is {' or '.join(dict.fromkeys(_KINDS[form.tokenised] for form in own))}"
        for stem, own in forms.items()
        if own
    )
    raise UserError(f"{folder}: the sets must be all plain or all tokenised; {said}. Provide all of them in one form.")


def holds_training(folder: Path) -> bool:
    """Whether a folder has a file whose name begins as a training set's does."""
    return folder.is_dir() and any(name.startswith(f"{stem}.") for name in names_in(folder) for stem in TRAIN)


def _forms(folder: Path, stem: str, languages: tuple[str, str]) -> list[Form]:
    """The forms of a set: cleaned text first, then the forms with fewer steps of preparation in their names."""
    names = names_in(folder)
    pattern = re.compile(rf"{re.escape(stem)}((?:\.(?:tok|clean|bpe|\d+))*)\.(\w+)")
    present: dict[str, set[str]] = {}
    for name in names:
        if (match := pattern.fullmatch(name)) and match[2] in languages:
            present.setdefault(match[1], set()).add(match[2])
    whole = [form for form, there in present.items() if len(there) == len(set(languages))]
    whole.sort(key=lambda form: (".clean" not in form, len(form), form))
    found = [
        Form.of_text(stem, *(folder / f"{stem}{form}.{language}" for language in languages)) for form in whole
    ] + list(_sgm(folder, names, stem, languages))
    if present and not found:
        (form, there), *others = sorted(present.items(), key=lambda item: -len(item[0]))
        (here,) = there
        (missing,) = set(languages) - there
        other = f" {stem}{others[0][0]}.{missing} is of another form." if others else ""
        raise UserError(
            f"{folder / f'{stem}{form}.{here}'} must have its other side; {stem}{form}.{missing} is missing.{other} "
            "Add it."
        )
    return found


def _sgm(folder: Path, names: list[str], stem: str, languages: tuple[str, str]) -> Iterator[Form]:
    source, target = languages
    pattern = re.compile(rf"{re.escape(stem)}(-\w+)?-src\.{re.escape(source)}\.sgm")
    for name in names:
        if match := pattern.fullmatch(name):
            reference = f"{stem}{match[1] or ''}-ref.{target}.sgm"
            if reference not in names:
                raise UserError(f"{folder / name} must have its reference; {reference} is missing. Add it.")
            yield Form(stem, (folder / name, folder / reference))


def _cached(stem: str, languages: tuple[str, str]) -> Form | None:
    """The set in sacrebleu's cache, if sacrebleu has downloaded it before."""
    if stem not in _CACHED:
        return None
    from sacrebleu.utils import SACREBLEU_DIR

    name = _CACHED[stem]
    base = Path(SACREBLEU_DIR, name, f"{name.replace('/', '_')}.{'-'.join(languages)}")
    paths = base.with_name(f"{base.name}.src"), base.with_name(f"{base.name}.ref")
    return Form(stem, paths) if all(map(os.path.isfile, paths)) else None
