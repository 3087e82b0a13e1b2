"""Text in columns, for what is printed."""

from collections.abc import Sequence


def columns(lines: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """The lines with columns of equal width; those in ``right`` end, the others begin, at one place."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            text.rjust(width) if place in right else text.ljust(width)
            for place, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
