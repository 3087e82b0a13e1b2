"""WMT's ``.sgm`` test sets: a source set and its reference set. Document and number say which segments belong together.

The files are not XML (ampersands are not escaped), so they are read line by line, as sacrebleu does: entities are not
decoded, and white space is collapsed.
"""

import re
from pathlib import Path

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.data.lines import read_lines

_DOCUMENT = re.compile(r"<doc\b[^>]*\bdocid=\"([^\"]*)\"", re.IGNORECASE)
_SEGMENT = re.compile(r"<seg\b[^>]*\bid=\"?([^\">]*)\"?[^>]*>(.*)</seg>", re.IGNORECASE)
_END = re.compile(r"</(?:srcset|refset)>\s*\Z", re.IGNORECASE)


def read_sgm(source: Path, reference: Path) -> tuple[list[str], list[str]]:
    """The segments of both files in order.

    Raises:
        UserError: a file is cut short, a segment is damaged, or the two do not hold the same segments.
    """
    segments, references = _read(source), _read(reference)
    for number, (ours, theirs) in enumerate(zip(segments, references, strict=False), start=1):
        if ours[0] != theirs[0]:
            raise UserError(
                f"{source} and {reference} must hold the same segments; number {number:,} is "
                f"{_named(ours[0])} in the first and {_named(theirs[0])} in the second. Get both again, from one set."
            )
    if len(segments) != len(references):
        raise UserError(
            f"{source} and {reference} must hold the same segments; they hold {len(segments):,} and "
            f"{len(references):,}. Get both again, from one set."
        )
    return [text for _, text in segments], [text for _, text in references]


def _read(path: Path) -> list[tuple[tuple[str, str], str]]:
    """((document, number), text) of every segment."""
    lines = list(read_lines(path))
    if not _END.search("\n".join(lines)):
        raise UserError(
            f"{path}, line {len(lines):,}: the file must end in </srcset> or </refset>; it is cut short. Get it again."
        )
    document, segments, seen = "", [], set()
    for number, line in enumerate(lines, start=1):
        if found := _DOCUMENT.search(line):
            document = found[1]
        if "<seg" not in line.lower():
            continue
        if (found := _SEGMENT.search(line)) is None:
            raise UserError(f'{path}, line {number:,}: a segment must be <seg id="N">text</seg>; got {line[:60]!r}.')
        key, text = (document, found[1]), " ".join(found[2].split())
        if key in seen:
            raise UserError(
                f"{path}, line {number:,}: each segment must occur once; {_named(key)} occurs again. "
                "Files with several references are not read."
            )
        if not text:
            raise UserError(f"{path}, line {number:,}: a segment must hold text; {_named(key)} is empty.")
        seen.add(key)
        segments.append((key, text))
    if not segments:
        raise UserError(f"{path} must hold segments <seg id=...>; it holds none. Get the file again.")
    return segments


def _named(key: tuple[str, str]) -> str:
    return f"segment {key[1]!r} of document {key[0]!r}"
