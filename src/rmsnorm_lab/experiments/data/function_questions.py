"""The stand-in for the reading set: functions of Python's standard library and their docstrings.

The context is a function's code in which entity markers replace the names. A question is a sentence of its docstring
with one of these names masked. The questions are written as DeepMind's `.question` files. Each source file belongs to
one split.
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
"""The fewest and the most words of a context, which is read as a whole."""
MOST_NAMES = 10
MOST_LINES = 30
"""Lines of a function's code. Longer functions are left out before they are split into words."""
QUESTION_LENGTHS = (3, 40)
_WORD = re.compile(r"[A-Za-z_]\w*|[^\s\w]|\d+")
_SENTENCE = re.compile(r"(?<=[.!?:])\s+|\n\s*\n")
"""Where a sentence ends. A heading, an example or an item of a list counts as a sentence too."""
_LEFT_OUT = frozenset("()[]{},:.")
"""Left out of the context, because they would be half of its words."""
_KEPT = frozenset(keyword.kwlist) | frozenset(dir(builtins))
"""Keywords and builtins mean the same everywhere, so they stay words."""


def write(folder: Path, sources: dict[str, str]) -> None:
    """Write the questions about ``sources`` (name -> Python text) into the three splits of ``folder``."""
    for split in FOLDERS.values():
        (folder / split).mkdir(parents=True, exist_ok=True)
    for name, text in sources.items():
        place = hashlib.sha256(name.encode()).digest()[0] / 256
        split = FOLDERS["train" if place < 0.72 else "valid" if place < 0.8 else "test"]
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
    """Every function in the statements under ``node``. Not in expressions: that takes a third of ast.walk's time."""
    for part in ("body", "orelse", "finalbody", "handlers"):
        for child in getattr(node, part, ()):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield child
            yield from _functions(child)


def _context(lines: list[str], node: ast.FunctionDef | ast.AsyncFunctionDef, markers: dict[str, str]) -> list[str]:
    """The function's words without its docstring. Adds its names to ``markers``, in the order of their occurrence."""
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
