"""The compiled nodes.cpp and ops.cpp that fit the running torch: the installation's, or those in the user's cache.

torch's C++ interface changes with each version, so each version has libraries of its own, with the version in their
names.
"""

import hashlib
import json
import os
import re
import stat
import subprocess
import sys
import sysconfig
from importlib import import_module
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType

import torch

from rmsnorm.native import codes
from rmsnorm.torch import schemas

_HERE = Path(__file__).parent
_NATIVE = _HERE.parent / "native"
_HEADERS = [_HERE / "tensors.h", *(_NATIVE / name for name in ("c_api.h", "norm_spec.h", "levels.h"))]
_MADE = {"codes.h": codes, "schemas.h": schemas}
"""Headers that modules of ours print."""


def _version() -> str:
    return re.sub(r"[^0-9A-Za-z]", "_", torch.__version__.partition("+")[0])


def nodes_name() -> str:
    """The name of the nodes' module for the running torch. CMakeLists.txt makes the same names."""
    return f"_nodes_{_version()}"


def operators_name() -> str:
    """That of the operators' library."""
    return f"_ops_{_version()}"


def find_nodes() -> ModuleType | None:
    """The module for the running torch, or None. ImportError: it is there, and does not load."""
    name = f"rmsnorm.torch.{nodes_name()}"
    try:
        return import_module(name)
    except ImportError as error:
        path, failed = cached(nodes_name()), None if isinstance(error, ModuleNotFoundError) else error
    if _is_private(path):
        loader = ExtensionFileLoader(name, str(path))
        module = module_from_spec(ModuleSpec(name, loader, origin=str(path)))
        loader.exec_module(module)
        return module
    if failed:
        raise failed
    return None


def find_operators() -> str | None:
    """The library for the running torch, which a C++ program can load too; None: there is none."""
    found = find_spec(f"rmsnorm.torch.{operators_name()}")
    if found:
        return found.origin
    path = cached(operators_name())
    return str(path) if _is_private(path) else None


def cached(name: str) -> Path:
    """Where :func:`build` puts a library: a folder for these sources and this Python, in the user's cache."""
    sources = [path.read_bytes() for path in (*_sources().values(), *_HEADERS) if path.is_file()]
    made = [module.header().encode() for module in _MADE.values()]
    digest = hashlib.sha256(b"\0".join(sources + made)).hexdigest()[:16]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "rmsnorm" / f"{digest}-{sysconfig.get_config_var('SOABI')}" / f"{name}.so"


def _sources() -> dict[str, Path]:
    return {nodes_name(): _HERE / "nodes.cpp", operators_name(): _HERE / "ops.cpp"}


def _is_private(path: Path) -> bool:
    """Whether the file is there and only this user can write it: importing it runs it."""
    try:
        found = [path.stat(), path.parent.stat()]
    except OSError:
        return False
    owner = os.getuid() if hasattr(os, "getuid") else None
    return all((owner is None or s.st_uid == owner) and not s.st_mode & (stat.S_IWGRP | stat.S_IWOTH) for s in found)


def build(verbose: bool = False) -> list[Path]:
    """Compiles both for the running torch into the user's cache, in about two minutes; returns their paths.

    Raises:
        RuntimeError: torch's headers, ninja or a C++20 compiler are not there, or the compiler fails.
    """
    missing = [path.name for path in (*_sources().values(), *_HEADERS) if not path.is_file()]
    if missing:
        raise RuntimeError(f"the C++ sources must be installed, {', '.join(missing)} is not; install again")
    built = []
    for name, source in _sources().items():
        target = cached(name)
        folder = target.parent
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        for header, module in _MADE.items():
            (folder / header).write_text(module.header(), encoding="utf-8")
        target.unlink(missing_ok=True)
        arguments = {
            "name": name,
            "sources": [str(source)],
            "extra_cflags": ["-std=c++20", "-O2", "-fvisibility=hidden", f"-DRMSNORM_NODES={name}"],
            "extra_include_paths": [str(folder)],
            "build_directory": str(folder),
            "with_cuda": False,
            "is_python_module": name == nodes_name(),
            "verbose": verbose,
        }
        # In a process of its own: it loads what it has compiled, and this one has the operators already.
        program = "import json, sys; from torch.utils.cpp_extension import load; load(**json.loads(sys.argv[1]))"
        done = subprocess.run(
            [sys.executable, "-c", program, json.dumps(arguments)], capture_output=not verbose, text=True, check=False
        )
        if done.returncode or not target.is_file():
            raise RuntimeError(f"{source.name} was not compiled. {(done.stderr or '').strip()[-2000:]}")
        target.chmod(0o700)
        built.append(target)
    return built
