"""Checkpoints of a run in progress: two of them, whole or refused.

The name of each carries the SHA-256 of its content: a damaged file is recognised before anything is unpickled, and the
one before it is used. Files hold only tensors and plain values (``torch.load(weights_only=True)``).
"""

import re
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from rmsnorm_lab.files import sha256_of, write_whole

KEPT = 2
"""A run needs space for one more, because the next is complete before the oldest is removed."""

_NAME = re.compile(r"(?P<stem>.+)\.step(?P<step>\d{9})\.(?P<digest>[0-9a-f]{12})\.pt")


class Checkpoints:
    """Those of one run, named after its record: ``<stem>.step<number>.<hash>.pt`` in ``folder``."""

    def __init__(self, folder: Path, stem: str, say: Callable[[str], None]) -> None:
        self.folder, self.stem, self.say = folder, stem, say

    def save(self, step: int, content: dict[str, Any]) -> None:
        """Write one and remove all but the last KEPT."""
        self.folder.mkdir(parents=True, exist_ok=True)
        stem = f"{self.stem}.step{step:09d}"
        write_whole(
            self.folder / f"{stem}.pt",
            lambda file: torch.save(content, file),
            rename=lambda written: self.folder / f"{stem}.{_digest(written)}.pt",
        )
        for old in self._paths()[:-KEPT]:
            old.unlink(missing_ok=True)

    def load(self) -> dict[str, Any] | None:
        """The last whole one. Damaged ones are removed, because they would count among the KEPT, and named.

        A file that cannot be read is an error, because it may be whole.
        """
        for path in reversed(self._paths()):
            try:
                if _digest(path) != path.name.split(".")[-2]:
                    raise ValueError("its content does not match the hash in its name")
                content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            except (ValueError, RuntimeError, EOFError, UnpicklingError) as error:
                reason = str(error).partition("\n")[0]
                self.say(
                    f"checkpoint {path} is refused and removed: {reason}; the one before it is taken, if any is there"
                )
                path.unlink(missing_ok=True)
            else:
                return content
        return None

    def exist(self) -> bool:
        """Whether there is one of this run."""
        return bool(self._paths())

    def remove(self) -> None:
        """All of this run's: it is recorded, or done again."""
        for path in self._paths():
            path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        return [path for path, name in _all(self.folder) if name["stem"] == self.stem]


def stems(folder: Path, base: str) -> list[str]:
    """The stems of checkpoints that are ``base`` or begin with ``base-``, the one with most steps first."""
    found = [name for _, name in _all(folder) if name["stem"] == base or name["stem"].startswith(f"{base}-")]
    return list(dict.fromkeys(name["stem"] for name in sorted(found, key=lambda name: name["step"], reverse=True)))


def rename(folder: Path, stem: str, new: str) -> None:
    """The checkpoints of one run become another's."""
    for path, name in _all(folder):
        if name["stem"] == stem:
            path.replace(path.with_name(new + path.name.removeprefix(stem)))


def _all(folder: Path) -> list[tuple[Path, re.Match[str]]]:
    """Every checkpoint in the folder, a run's by step."""
    if not folder.is_dir():
        return []
    return [(path, name) for path in sorted(folder.iterdir()) if (name := _NAME.fullmatch(path.name))]


def _digest(path: Path) -> str:
    return sha256_of(path)[:12]
