"""The stand-in for the reading set: functions of Python's standard library, and what their docstrings say of them.

The context is a function's code with every name replaced by an entity marker; a question is a sentence of its docstring
with one of these names masked. Written as DeepMind's `.question` files. The split is by source file.
"""

import ast
import builtins
import hashlib
import io
import keyword
import re
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path

from rmsnorm_lab.experiments.data.cloze import FOLDERS, PLACEHOLDER

LENGTHS = (6, 40)
"""Words that a context may have: all of it is read."""
MOST_NAMES = 10
MOST_LINES = 30
"""Of a function's code; longer ones are not even split into words."""
QUESTION_LENGTHS = (3, 40)
_WORD = re.compile(r"[A-Za-z_]\w*|[^\s\w]|\d+")
_SENTENCE = re.compile(r"(?<=[.!?:])\s+|\n\s*\n")
"""Where a sentence ends: what is said in a heading, an example or a list counts as one too."""
_LEFT_OUT = frozenset("()[]{},:.")
"""Half of the words would be these."""
_KEPT = frozenset(keyword.kwlist) | frozenset(dir(builtins))
"""Names that mean the same everywhere stay words."""


def write(folder: Path, sources: dict[str, str]) -> None:
    """Write the questions on ``sources`` (name -> Python text) into ``folder``'s three splits."""
    for split in FOLDERS.values():
        (folder / split).mkdir(parents=True, exist_ok=True)
    for name, text in sources.items():
        lot = hashlib.sha256(name.encode()).digest()[0] / 256
        split = FOLDERS["train" if lot < 0.72 else "valid" if lot < 0.8 else "test"]
        for number, record in enumerate(_records(name, text)):
            stem = hashlib.sha1(f"{name} {number}".encode(), usedforsecurity=False).hexdigest()
            (folder / split / f"{stem}.question").write_text(record, encoding="utf-8")


def _records(name: str, text: str) -> Iterator[str]:
    lines = text.split("\n")
    for node in _functions(ast.parse(text)):
        docstring = ast.get_docstring(node)
        if not docstring:
            continue
        markers: dict[str, str] = {}
        context = _context(lines, node, markers)
        if not LENGTHS[0] <= len(context) <= LENGTHS[1] or len(markers) > MOST_NAMES:
            continue
        entities = "\n".join(f"{marker}:{each}" for each, marker in markers.items())
        for sentence in _SENTENCE.split(docstring):
            said = _WORD.findall(sentence)
            if not QUESTION_LENGTHS[0] <= len(said) <= QUESTION_LENGTHS[1]:
                continue
            for word in dict.fromkeys(word for word in said if word in markers):
                question = [PLACEHOLDER if w == word else markers.get(w, w) for w in said]
                parts = (f"python:{name}#{node.name}", " ".join(context), " ".join(question), markers[word], entities)
                yield "\n\n".join(parts)


def _functions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function in the statements under ``node``, not in expressions: a third of the time of ast.walk."""
    for part in ("body", "orelse", "finalbody", "handlers"):
        for child in getattr(node, part, ()):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield child
            yield from _functions(child)


def _context(lines: list[str], node: ast.FunctionDef | ast.AsyncFunctionDef, markers: dict[str, str]) -> list[str]:
    """The function's words without its docstring; fills ``markers`` with its names in the order of their occurrence."""
    documented, words = node.body[0], []
    own = range(documented.lineno, (documented.end_lineno or 0) + 1)
    code = [lines[i - 1] for i in range(node.lineno, (node.end_lineno or 0) + 1) if i not in own]
    if len(code) > MOST_LINES:
        return []
    for token in tokenize.generate_tokens(io.StringIO(textwrap.dedent("\n".join(code))).readline):
        if token.type == tokenize.NAME:
            kept = token.string in _KEPT
            words.append(token.string if kept else markers.setdefault(token.string, f"@entity{len(markers)}"))
        elif token.type == tokenize.NUMBER:
            words.append("number")
        elif token.type == tokenize.STRING or token.type == getattr(tokenize, "FSTRING_START", None):
            words.append("string")
        elif token.type == tokenize.NEWLINE:
            words.append(";")
        elif token.type == tokenize.OP and token.string not in _LEFT_OUT:
            words.append(token.string)
    return words
