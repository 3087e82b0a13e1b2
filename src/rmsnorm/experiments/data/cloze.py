"""Cloze questions on a text whose names are entity markers: the CNN/Daily Mail reading set (Hermann et al. 2015).

DeepMind   {training,validation,test}/*.question: URL, context, question with @placeholder, answer @entityN,
           lines @entityN:name; a blank line between them
Danqi      {train,dev,test}.txt: question, answer, context, blank line, …
"""

import re
from dataclasses import dataclass
from pathlib import Path

from rmsnorm.errors import UserError
from rmsnorm.experiments.data.lines import decode, digest, lines_of, read_bytes

PLACEHOLDER = "@placeholder"
FOLDERS = {"train": "training", "valid": "validation", "test": "test"}
FILES = {"train": "train.txt", "valid": "dev.txt", "test": "test.txt"}
ENTITY = re.compile(r"@entity\d+")
_NAMED = re.compile(r"(@entity\d+):.*")
_INSIDE = ("", "questions", "cnn/questions", "dailymail/questions")
"""Where the folders may lie under what the user names."""


@dataclass(frozen=True)
class Question:
    context: list[str]
    question: list[str]
    answer: str
    """The entity marker that stands where the question has @placeholder; it occurs in the context."""


@dataclass(frozen=True)
class Questions:
    splits: dict[str, list[Question]]
    layout: str
    sha256: str


def load(path: Path) -> Questions:
    """The three splits of whichever layout ``path`` holds, files in the order of their names."""
    roots = [path / part for part in _INSIDE if (path / part / FOLDERS["train"]).is_dir()]
    if len(roots) > 1:
        raise UserError(f"--data must name one set of questions; {str(path)!r} holds several: pass {str(roots[0])!r}.")
    read: list[tuple[str, bytes]] = []
    splits: dict[str, list[Question]] = {}
    if roots:
        for split, folder in FOLDERS.items():
            files = sorted((roots[0] / folder).glob("*.question"))
            if not files:
                raise UserError(f"{str(roots[0] / folder)!r} must hold .question files, holds none. Add the split.")
            contents = [read_bytes(file) for file in files]
            splits[split] = [_deepmind(decode(c, f), f) for f, c in zip(files, contents, strict=True)]
            read += [(f"{folder}/{file.name}", content) for file, content in zip(files, contents, strict=True)]
        return Questions(splits, "DeepMind", digest(read))
    missing = [name for name in FILES.values() if not (path / name).is_file()]
    if len(missing) == len(FILES):
        raise UserError(
            f"--data must hold {', '.join(FOLDERS.values())} with .question files, or {', '.join(FILES.values())}; "
            f"{str(path)!r} holds neither. (cnn_dailymail of Hugging Face is the set for summaries: not this one.)"
        )
    if missing:
        raise UserError(f"{str(path)!r} lacks {', '.join(missing)}. Add the missing files.")
    for split, name in FILES.items():
        content = read_bytes(path / name)
        splits[split] = _danqi(lines_of(content, path / name), path / name)
        read.append((name, content))
    return Questions(splits, "Danqi", digest(read))


def _deepmind(text: str, path: Path) -> Question:
    where = repr(str(path))
    blocks = text.replace("\r\n", "\n").strip("\n").split("\n\n")
    if len(blocks) != 5:
        raise UserError(
            f"{where} must have 5 parts with a blank line between them (URL, context, question, answer, entities), "
            f"has {len(blocks)}: it is truncated or another kind of file. Fetch it again."
        )
    _, context, question, answer, entities = blocks
    names = set()
    for line in entities.split("\n"):
        named = _NAMED.fullmatch(line)
        if not named:
            raise UserError(f"{where}: the last part must be lines @entityN:name, has {line!r}. Fetch it again.")
        names.add(named[1])
    if answer.strip() not in names:
        raise UserError(f"{where}: the answer must be one of the entities listed, is {answer!r}. Fetch it again.")
    return _checked(context, question, answer, where)


def _danqi(lines: list[str], path: Path) -> list[Question]:
    found = []
    for start in range(0, len(lines), 4):
        record = lines[start : start + 4]
        where = f"{str(path)!r}, line {start + 1}"
        if len(record) < 3 or any(record[3:]):
            raise UserError(
                f"{where}: a record must be question, answer, context and a blank line; "
                f"{'the file ends in it' if len(record) < 3 else 'its fourth line is not blank'}. Fetch the file again."
            )
        question, answer, context = record[:3]
        found.append(_checked(context, question, answer, where))
    if not found:
        raise UserError(f"{str(path)!r} must hold questions, is empty. Fetch it again.")
    return found


def _checked(context: str, question: str, answer: str, where: str) -> Question:
    found = Question(context.lower().split(), question.lower().split(), answer.strip())
    if PLACEHOLDER not in found.question:
        raise UserError(f"{where}: the question must contain {PLACEHOLDER}, is {question!r}. Mend the record.")
    if not ENTITY.fullmatch(found.answer):
        raise UserError(f"{where}: the answer must be an entity marker @entityN, is {answer!r}. Mend the record.")
    if found.answer not in found.context:
        raise UserError(f"{where}: the answer {found.answer} must occur in the context, does not. Mend the record.")
    return found


def most_relevant(context: list[str], question: list[str], count: int) -> list[str]:
    """The ``count`` sentences (up to a ".") that share the most different words with the question, in their order."""
    sentences: list[list[str]] = [[]]
    for word in context:
        sentences[-1].append(word)
        if word == ".":
            sentences.append([])
    sentences = [sentence for sentence in sentences if sentence]
    asked = set(question)
    ranked = sorted(range(len(sentences)), key=lambda i: (-len(asked & set(sentences[i])), i))
    return [word for i in sorted(ranked[:count]) for word in sentences[i]]
