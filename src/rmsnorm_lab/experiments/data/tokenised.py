"""What was done to a text before: BPE and Moses's tokeniser leave traces, whatever the file is called."""

import re
from pathlib import Path

from rmsnorm_lab.experiments.data.files import opened

_BEGINNING = 1 << 20
"""Bytes of a file that are looked at."""
_JOINT = re.compile(r"(@@ )|(@@ ?$)")
_JOINTS_SHARE = 10
"""A file is the output of subword-nmt if at least one line in this many has its joints."""
_ESCAPES = re.compile(r"&(?:quot|apos|#124|#91|#93);|##AT##| @-@ ")
"""Moses's for quotes, apostrophes, bars and brackets; of hyphens within words, Stanford's and Moses's."""
_ESCAPES_SHARE = 20
"""A file is tokenised if at least one line in this many has one of these, or if half of the full stops stand apart."""


def without_joints(line: str) -> str:
    """The line with BPE undone."""
    return _JOINT.sub("", line)


def has_joints(path: Path) -> bool:
    """Whether a file is cut by BPE."""
    lines = _beginning(path)
    return any(lines) and _JOINTS_SHARE * sum("@@ " in line for line in lines) >= len(lines)


def looks_tokenised(path: Path) -> bool:
    """Whether words and punctuation are apart in a file."""
    lines = _beginning(path)
    stops = [line for line in lines if line.endswith(".")]
    apart = sum(line.endswith(" .") for line in stops)
    escaped = sum(bool(_ESCAPES.search(line)) for line in lines)
    return bool(stops and 2 * apart >= len(stops)) or bool(escaped and _ESCAPES_SHARE * escaped >= len(lines))


def _beginning(path: Path) -> list[str]:
    """The first lines; what is no UTF-8 is an error when the file is read, not here."""
    with opened(path) as file:
        content = file.read(_BEGINNING)
    lines = content.decode("utf-8", "replace").split("\n")
    return [line.strip() for line in lines[: -1 if len(lines) > 1 else None]]
