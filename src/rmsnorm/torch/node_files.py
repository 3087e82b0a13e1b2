"""The compiled nodes.cpp and ops.cpp that fit the running torch: the installation's, or those in the user's cache.

torch's C++ interface changes with each version, so each version has libraries of its own, with the version in their
names.
"""

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
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
        path, failed = _in_cache(nodes_name()), None if isinstance(error, ModuleNotFoundError) else error
    if path:
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
    path = _in_cache(operators_name())
    return str(path) if path else None


def cached(name: str) -> Path:
    """Where :func:`build` puts a library: a folder for these sources and this Python, in the user's cache.

    Raises:
        RuntimeError: the user has no home folder.
    """
    sources = [path.read_bytes() for path in (*_sources().values(), *_HEADERS) if path.is_file()]
    made = [module.header().encode() for module in _MADE.values()]
    digest = hashlib.sha256(b"\0".join(sources + made)).hexdigest()[:16]
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not root.is_absolute():  # the XDG base directory specification ignores others
        root = Path.home() / ".cache"
    return root / "rmsnorm" / f"{digest}-{sysconfig.get_config_var('SOABI')}" / f"{name}.so"


def _sources() -> dict[str, Path]:
    return {nodes_name(): _HERE / "nodes.cpp", operators_name(): _HERE / "ops.cpp"}


def _in_cache(name: str) -> Path | None:
    """The library in the cache, if it is there and only this user can write it: importing it runs it."""
    try:
        path = cached(name)
        found = [path.stat(), path.parent.stat()]
    except (OSError, RuntimeError):
        return None
    owner = os.getuid() if hasattr(os, "getuid") else None
    private = all((owner is None or s.st_uid == owner) and not s.st_mode & (stat.S_IWGRP | stat.S_IWOTH) for s in found)
    return path if private else None


_COMPILE = """
import json, subprocess, sys
from torch.utils.cpp_extension import load

try:
    load(**json.loads(sys.argv[1]))
except (RuntimeError, ImportError, OSError, subprocess.SubprocessError) as error:
    sys.exit(str(error))
"""


def build(verbose: bool = False) -> list[Path]:
    """Compiles both for the running torch into the user's cache, in about two minutes; returns their paths.

    They are compiled in a new folder and moved when they are whole: a command that is stopped, or one that runs at the
    same time, leaves nothing that another waits for or loads.

    Raises:
        RuntimeError: the sources, ninja or a compiler are not there, or the compiler fails.
        OSError: the cache cannot be written.
    """
    missing = [path.name for path in (*_sources().values(), *_HEADERS) if not path.is_file()]
    if missing:
        raise RuntimeError(f"the C++ sources must be installed, {', '.join(missing)} is not; install again")
    environment = _environment()
    folder = cached(nodes_name()).parent
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for header, module in _MADE.items():
            Path(place, header).write_text(module.header(), encoding="utf-8")
        made = [_compile(name, source, place, environment, verbose) for name, source in _sources().items()]
        return [path.replace(folder / path.name) for path in made]


def _environment() -> dict[str, str]:
    """The compiler's environment, in which ninja and the compiler are."""
    # `pip install ninja` puts it beside Python, where PATH does not lead if the environment is not activated.
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    compiler = os.environ.get("CXX", "c++")  # torch's choice
    if not shutil.which("ninja", path=path):
        raise RuntimeError(f"ninja must be on PATH or beside {sys.executable}, and is not: pip install ninja")
    if not shutil.which(compiler.split()[0] if compiler.strip() else "", path=path):
        raise RuntimeError(
            f"a C++20 compiler must be on PATH, and {compiler!r} is not; install g++ >= 11 or clang++ >= 14, or set CXX"
        )
    return {**os.environ, "PATH": path}


def _compile(name: str, source: Path, place: str, environment: dict[str, str], verbose: bool) -> Path:
    arguments = {
        "name": name,
        "sources": [str(source)],
        "extra_cflags": ["-std=c++20", "-O2", "-fvisibility=hidden", f"-DRMSNORM_NODES={name}"],
        "extra_include_paths": [place],
        "build_directory": place,
        "with_cuda": False,
        "is_python_module": name == nodes_name(),
        "verbose": verbose,
    }
    # In a process of its own: it loads what it has compiled, and this one has the operators already.
    done = subprocess.run(
        [sys.executable, "-c", _COMPILE, json.dumps(arguments)],
        env=environment,
        capture_output=not verbose,
        text=True,
        check=False,
    )
    made = Path(place, f"{name}.so")
    if done.returncode or not made.is_file():
        raise RuntimeError(
            f"{source.name} was not compiled; it needs a C++20 compiler (g++ >= 11, clang++ >= 14) and Python's "
            f"headers. {(done.stderr or '').strip()[-2000:]}"
        )
    made.chmod(0o700)
    return made
