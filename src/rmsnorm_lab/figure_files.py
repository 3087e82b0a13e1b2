"""Figures as files: which kinds there are, and writing one whole."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.files import check_output, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")


def check_figure(flag: str, path: Path) -> None:
    """Refuse, before any work, a figure that could not be written at its end."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{flag} must name a file that ends in {', '.join(FORMATS)}; got {str(path)!r}.")
    check_output(flag, path)


def write_figure(path: Path, figure: "Figure") -> None:
    """Write the figure in the format that the file's name ends in: the whole file or nothing."""
    image = io.BytesIO()
    figure.savefig(image, format=path.suffix[1:].lower(), dpi=130)
    write_whole(path, image.getvalue())
