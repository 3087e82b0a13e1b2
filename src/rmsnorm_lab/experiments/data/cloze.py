"""Cloze questions on a text whose names are entity markers: the CNN/Daily Mail reading set (Hermann et al. 2015).

DeepMind   {training,validation,test}/*.question: URL, context, question with @placeholder, answer @entityN,
           lines @entityN:name; with a blank line between the parts
Danqi      {train,dev,test}.txt: question, answer, context, blank line, …
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.data.input_files import names_in, read_bytes
from rmsnorm_lab.experiments.data.lines import begin, decode, read_lines

PLACEHOLDER = "@placeholder"
LONGEST = 1000
"""Words of a question. A question is never shortened."""
FOLDERS = {"train": "training", "valid": "validation", "test": "test"}
FILES = {"train": "train.txt", "valid": "dev.txt", "test": "test.txt"}
ENTITY = re.compile(r"@entity\d+")
_NAMED = re.compile(r"(@entity\d+):.*")
_INSIDE = ("", "questions", "cnn/questions", "dailymail/questions")
"""Where the folders may be, relative to the path that the user gives."""


@dataclass(frozen=True)
class Question:
    context: list[str]
    question: list[str]
    answer: str
    """The entity marker that @placeholder replaces in the question; it occurs in the context."""


@dataclass(frozen=True)
class Files:
    """The files of the three splits."""

    layout: str
    root: Path
    splits: dict[str, list[str]]
    """Names relative to ``root``, in the order in which they are read."""

    def all(self) -> Iterator[Path]:
        return (self.root / name for names in self.splits.values() for name in names)

    def questions(self, split: str, hashed: Any) -> Iterator[Question]:
        """The questions one by one. ``hashed`` is updated with the names, sizes and contents of the files."""
        for name in self.splits[split]:
            path = self.root / name
            if self.layout == "DeepMind":
                content = read_bytes(path)
                begin(hashed, name, len(content))
                hashed.update(content)
                yield _deepmind(decode(content, path), path)
            else:
                begin(hashed, name, path.stat().st_size)
                yield from _danqi(read_lines(path, hashed), path)


def find(path: Path) -> Files:
    """The files under ``path``, in either layout."""
    roots = [path / part for part in _INSIDE if (path / part / FOLDERS["train"]).is_dir()]
    if len(roots) > 1:
        raise UserError(f"--data must name one set of questions; {str(path)!r} holds several: pass {str(roots[0])!r}.")
    if roots:
        splits = {
            split: [f"{folder}/{name}" for name in names_in(roots[0] / folder) if name.endswith(".question")]
            for split, folder in FOLDERS.items()
        }
        if empty := [FOLDERS[split] for split, names in splits.items() if not names]:
            raise UserError(f"{str(roots[0] / empty[0])!r} must hold .question files; it holds none. Add the split.")
        return Files("DeepMind", roots[0], splits)
    missing = [name for name in FILES.values() if not (path / name).exists()]
    if len(missing) == len(FILES):
        raise UserError(
            f"--data must hold {', '.join(FOLDERS.values())} with .question files, or {', '.join(FILES.values())}; "
            f"{str(path)!r} holds neither. (cnn_dailymail of Hugging Face is the set for summaries: not this one.)"
        )
    if missing:
        raise UserError(f"{str(path)!r} lacks {', '.join(missing)}. Add the missing files.")
    return Files("Danqi", path, {split: [name] for split, name in FILES.items()})


def _deepmind(text: str, path: Path) -> Question:
    where = repr(str(path))
    blocks = text.replace("\r\n", "\n").strip("\n").split("\n\n")
    if len(blocks) != 5:
        raise UserError(
            f"{where} must have 5 parts with a blank line between them (URL, context, question, answer, entities), "
            f"not {len(blocks)}: it is cut short, or it is another kind of file. Download it again."
        )
    _, context, question, answer, entities = blocks
    names = set()
    for line in entities.split("\n"):
        named = _NAMED.fullmatch(line)
        if not named:
            raise UserError(f"{where}: the last part must be lines @entityN:name; got {line!r}. Download it again.")
        names.add(named[1])
    if answer.strip() not in names:
        raise UserError(f"{where}: the answer must be one of the entities listed; got {answer!r}. Download it again.")
    return _checked(context, question, answer, where)


def _danqi(lines: Iterator[str], path: Path) -> Iterator[Question]:
    start = 1
    while record := list(islice(lines, 4)):
        where = f"{str(path)!r}, line {start:,}"
        if len(record) < 3 or any(record[3:]):
            raise UserError(
                f"{where}: a record must be question, answer, context and a blank line; "
                f"{'the file ends in it' if len(record) < 3 else 'its fourth line is not blank'}. Fetch the file again."
            )
        question, answer, context = record[:3]
        yield _checked(context, question, answer, where)
        start += 4


def _checked(context: str, question: str, answer: str, where: str) -> Question:
    found = Question(context.lower().split(), question.lower().split(), answer.strip())
    if len(found.question) > LONGEST:
        raise UserError(
            f"{where}: a question must have at most {LONGEST:,} words; it has {len(found.question):,}. "
            "Correct the record."
        )
    if PLACEHOLDER not in found.question:
        raise UserError(f"{where}: the question must contain {PLACEHOLDER}; got {question!r}. Correct the record.")
    if not ENTITY.fullmatch(found.answer):
        raise UserError(f"{where}: the answer must be an entity marker @entityN; got {answer!r}. Correct the record.")
    if found.answer not in found.context:
        raise UserError(
            f"{where}: the answer {found.answer} must occur in the context; it does not. Correct the record."
        )
    return found


def most_relevant(context: list[str], question: list[str], count: int) -> list[str]:
    """The words of the ``count`` sentences that share the most distinct words with the question, in order.

    A sentence ends with ".".
    """
    sentences: list[list[str]] = [[]]
    for word in context:
        sentences[-1].append(word)
        if word == ".":
            sentences.append([])
    sentences = [sentence for sentence in sentences if sentence]
    asked = set(question)
    ranked = sorted(range(len(sentences)), key=lambda i: (-len(asked & set(sentences[i])), i))
    return [word for i in sorted(ranked[:count]) for word in sentences[i]]
