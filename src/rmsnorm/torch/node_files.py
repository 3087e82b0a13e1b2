"""The compiled nodes.cpp that fits the running torch: the installation's, or one in the user's cache; and its compiler.
Also the installation's compiled ops.cpp.

torch's C++ interface changes with each version, so each version has a module of its own, with the version in its name.
"""

import hashlib
import os
import re
import stat
import sysconfig
from importlib import import_module
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType

import torch

from rmsnorm.native import codes

_HERE = Path(__file__).parent
_NATIVE = _HERE.parent / "native"
_SOURCES = [_HERE / "nodes.cpp", _HERE / "tensors.h", _NATIVE / "c_api.h", _NATIVE / "norm_spec.h"]


def module_name() -> str:
    """The name of the module for the running torch. CMakeLists.txt makes the same names."""
    return "_nodes_" + re.sub(r"[^0-9A-Za-z]", "_", torch.__version__.partition("+")[0])


def operators() -> str | None:
    """The library of ops.cpp for the running torch, which a C++ program can load too; None: it was not built."""
    found = find_spec(f"rmsnorm.torch.{module_name().replace('_nodes_', '_ops_')}")
    return found.origin if found else None


def find() -> ModuleType | None:
    """The module for the running torch, or None. ImportError: it is there, and does not load."""
    name = f"rmsnorm.torch.{module_name()}"
    try:
        return import_module(name)
    except ImportError as error:
        path, failed = cached(), None if isinstance(error, ModuleNotFoundError) else error
    if _is_private(path):
        loader = ExtensionFileLoader(name, str(path))
        module = module_from_spec(ModuleSpec(name, loader, origin=str(path)))
        loader.exec_module(module)
        return module
    if failed:
        raise failed
    return None


def cached() -> Path:
    """Where :func:`build` puts the module: a folder for these sources and this Python, in the user's cache."""
    sources = [path.read_bytes() for path in _SOURCES if path.is_file()]
    digest = hashlib.sha256(b"\0".join([*sources, codes.header().encode()])).hexdigest()[:16]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "rmsnorm" / f"{digest}-{sysconfig.get_config_var('SOABI')}" / f"{module_name()}.so"


def _is_private(path: Path) -> bool:
    """Whether the file is there and only this user can write it: importing it runs it."""
    try:
        found = [path.stat(), path.parent.stat()]
    except OSError:
        return False
    owner = os.getuid() if hasattr(os, "getuid") else None
    return all((owner is None or s.st_uid == owner) and not s.st_mode & (stat.S_IWGRP | stat.S_IWOTH) for s in found)


def build(verbose: bool = False) -> Path:
    """Compiles the module for the running torch into the user's cache, in about a minute; returns its path.

    Raises:
        RuntimeError: torch, its headers, ninja or a C++20 compiler are not there, or the compiler fails.
    """
    missing = [path.name for path in _SOURCES if not path.is_file()]
    if missing:
        raise RuntimeError(f"the sources of the nodes must be installed, {', '.join(missing)} is not; install again")
    from torch.utils.cpp_extension import load  # takes a second

    target = cached()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.parent.chmod(0o700)
    (target.parent / "codes.h").write_text(codes.header(), encoding="utf-8")
    target.unlink(missing_ok=True)
    load(
        module_name(),
        [str(_SOURCES[0])],
        extra_cflags=["-std=c++20", "-O2", "-fvisibility=hidden", f"-DRMSNORM_NODES={module_name()}"],
        extra_include_paths=[str(target.parent)],
        build_directory=str(target.parent),
        with_cuda=False,
        verbose=verbose,
    )
    target.chmod(0o700)
    return target
