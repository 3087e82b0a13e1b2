"""The sources of the running Python's standard library: text that every installation brings."""

import platform
import sys
import sysconfig
from pathlib import Path

from rmsnorm.errors import UserError
from rmsnorm.experiments.data.lines import decode, read_bytes

NAME = f"Python {platform.python_version()} standard library"
_TESTS = {"test", "tests", "idle_test"}


def sources() -> dict[str, str]:
    """The .py files that Python names as its standard library, without its tests and without site-packages."""
    root = Path(sysconfig.get_path("stdlib"))
    files: dict[str, Path] = {}
    for module in sys.stdlib_module_names:  # not a walk of everything: site-packages lies in there too
        for path in [root / f"{module}.py", *(root / module).rglob("*.py")]:
            name = path.relative_to(root)
            if path.is_file() and not _TESTS & set(name.parts):
                files[name.as_posix()] = path
    if not files:
        raise UserError(
            "this Python carries no sources of its standard library to train on; pass --data FILE_OR_FOLDER"
        )
    return {name: decode(read_bytes(files[name]), files[name]) for name in sorted(files)}
