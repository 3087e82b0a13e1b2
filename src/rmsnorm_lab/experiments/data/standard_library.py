"""The sources of Python's standard library: text that is part of every installation."""

import platform
import sys
import sysconfig
from pathlib import Path

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.data.input_files import read_bytes, walk
from rmsnorm_lab.experiments.data.lines import decode

NAME = f"Python {platform.python_version()} standard library"
_TESTS = {"test", "tests", "idle_test"}


def sources() -> dict[str, str]:
    """The .py files of the standard library, without its tests and without site-packages."""
    root = Path(sysconfig.get_path("stdlib"))
    files: dict[str, Path] = {}
    for module in sys.stdlib_module_names:  # not all of the folder, which holds site-packages too
        inside = [f"{module}/{name}" for name in walk(root / module)] if (root / module).is_dir() else []
        for name in [f"{module}.py", *inside]:
            if name.endswith(".py") and (root / name).is_file() and not _TESTS & set(name.split("/")):
                files[name] = root / name
    if not files:
        raise UserError("this Python has no sources of its standard library to train on; pass --data FILE_OR_FOLDER")
    return {name: decode(read_bytes(files[name]), files[name]) for name in sorted(files)}
