"""Recognises text that was cut by BPE or tokenised by Moses, whatever the file is called."""

import re
from pathlib import Path

from rmsnorm_lab.experiments.data.input_files import opened

_BEGINNING = 1 << 20
"""Bytes of a file that are examined."""
_SEPARATOR = re.compile(r"(@@ )|(@@ ?$)")
_BPE_SHARE = 10
"""A file is subword-nmt's output if at least one line in this many has its separator."""
_ESCAPES = re.compile(r"&(?:quot|apos|#124|#91|#93);|##AT##| @-@ ")
"""Moses's escapes of quotes, apostrophes, bars and brackets; Stanford's and Moses's hyphens within words."""
_ESCAPES_SHARE = 20
"""A file is tokenised if at least one line in this many has an escape, or if half of the final full stops follow a
space."""


def without_bpe(line: str) -> str:
    """The line with BPE undone."""
    return _SEPARATOR.sub("", line)


def has_bpe(path: Path) -> bool:
    """Whether a file was cut by BPE."""
    lines = _beginning(path)
    return any(lines) and _BPE_SHARE * sum("@@ " in line for line in lines) >= len(lines)


def looks_tokenised(path: Path) -> bool:
    """Whether words and punctuation are separated in a file."""
    lines = _beginning(path)
    stops = [line for line in lines if line.endswith(".")]
    apart = sum(line.endswith(" .") for line in stops)
    escaped = sum(bool(_ESCAPES.search(line)) for line in lines)
    return bool(stops and 2 * apart >= len(stops)) or bool(escaped and _ESCAPES_SHARE * escaped >= len(lines))


def _beginning(path: Path) -> list[str]:
    """The first lines. Text that is not UTF-8 raises when the file is read, not here."""
    with opened(path) as file:
        content = file.read(_BEGINNING)
    lines = content.decode("utf-8", "replace").split("\n")
    return [line.strip() for line in lines[: -1 if len(lines) > 1 else None]]
