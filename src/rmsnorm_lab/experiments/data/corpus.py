"""Sets of sentence pairs. The training set is not kept in memory: each pass reads its files again, line by line."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import compress, islice, zip_longest
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.data.lines import read_lines
from rmsnorm_lab.experiments.data.loading import Loading
from rmsnorm_lab.experiments.data.tokenised import without_bpe
from rmsnorm_lab.files import sha256_of

_CHUNK = 10_000


class Texts(Protocol):
    """Sentences that can be counted and iterated over more than once."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[str]: ...


class Lines:
    """The sentences of a text file.

    Arguments:
        bpe: BPE must be undone.
        kept: a byte for each line, 1 if the line is one of the sentences.
    """

    def __init__(self, path: Path, bpe: bool, kept: bytes = b"") -> None:
        self.path, self.bpe, self.kept = path, bpe, kept

    def __len__(self) -> int:
        return self.kept.count(1)

    def __iter__(self) -> Iterator[str]:
        return compress(self.all(), self.kept)

    def all(self) -> Iterator[str]:
        """Every line, with BPE undone."""
        lines = read_lines(self.path)
        return map(without_bpe, lines) if self.bpe else lines


T = TypeVar("T", bound=Texts, covariant=True)


@dataclass(frozen=True)
class Pairs(Generic[T]):
    """Sentences and their translations: ``target[i]`` is the reference of ``source[i]``."""

    name: str
    source: T
    target: T
    tokenised: bool = False
    """Words and punctuation are separated (Moses). BLEU of such text is not comparable with BLEU of plain text."""
    without_text: int = 0
    """The number of training pairs left out because a side was empty."""


@dataclass(frozen=True)
class Corpus:
    train: Pairs[Texts]
    valid: Pairs[list[str]]
    tests: tuple[Pairs[list[str]], ...]
    counts: Mapping[str, int] = field(default_factory=dict)
    """What else a record should say of the text."""

    def sha256(self) -> str:
        return sha256_of(self._content())

    def _content(self) -> Iterator[bytes]:
        for pairs in (self.train, self.valid, *self.tests):
            for side in (pairs.source, pairs.target):
                yield f"{pairs.name} {len(side)} ".encode()
                lines, separator = iter(side), ""
                while chunk := list(islice(lines, _CHUNK)):
                    yield (separator + "\n".join(chunk)).encode()
                    separator = "\n"


def training_pairs(name: str, source: Lines, target: Lines, tokenised: bool, loading: Loading) -> Pairs[Texts]:
    """Both sides, checked. Pairs with an empty line are left out and counted."""
    lengths, kept = [0, 0], bytearray()
    for pair in loading.over("checking the text", zip_longest(source.all(), target.all())):
        for side, line in enumerate(pair):
            lengths[side] += line is not None
        kept.append(all(pair))
    _check_lengths(source, target, *lengths)
    if not any(kept):
        raise UserError(f"{source.path} and {target.path} must hold sentences; they hold none. Get both again.")
    sides = [Lines(side.path, side.bpe, bytes(kept)) for side in (source, target)]
    return Pairs(name, sides[0], sides[1], tokenised, kept.count(0))


def evaluation_pairs(name: str, source: Lines, target: Lines, tokenised: bool) -> Pairs[list[str]]:
    """Both sides as lists. An empty line is an error, because an evaluation set must be complete."""
    sides = [list(source.all()), list(target.all())]
    _check_lengths(source, target, len(sides[0]), len(sides[1]))
    for side, lines in zip((source, target), sides, strict=True):
        if "" in lines:
            raise UserError(
                f"{side.path}, line {lines.index('') + 1:,}: there must be a sentence; the line is empty. "
                "Get the file again."
            )
    return Pairs(name, sides[0], sides[1], tokenised)


def _check_lengths(source: Lines, target: Lines, sources: int, targets: int) -> None:
    if sources != targets:
        raise UserError(
            f"{source.path} and {target.path} must have the same number of lines; they have {sources:,} and "
            f"{targets:,}. One of them is cut short or belongs to another set; get both again."
        )
