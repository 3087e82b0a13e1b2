"""A text file as its lines, checked."""

from pathlib import Path

from rmsnorm.errors import UserError


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file. Only a line feed ends one: the Unicode line separators occur within sentences."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} must be readable; it is not: {error.strerror}.") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line:,}: text must be UTF-8; this is not: {error.reason}. "
            "Convert the file (iconv -f ENCODING -t UTF-8) or get it anew."
        ) from None
    if (place := text.find("\0")) >= 0:
        line = text.count("\n", 0, place) + 1
        raise UserError(f"{path}, line {line:,}: text must hold no zero bytes; this does. Get the file anew.")
    if not text.endswith("\n"):
        line = text.count("\n") + 1
        raise UserError(
            f"{path}, line {line:,}: the last line must end in a line feed; the file is cut short. Get it anew."
        )
    return [line.strip() for line in text[:-1].split("\n")]
