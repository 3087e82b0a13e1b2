"""Checkpoints of a run in progress: two of them, whole or refused.

Each is written under another name and renamed, and its name carries the SHA-256 of its content: what a full disk or a
failing one left is recognised before anything is unpickled, and the one before it is taken. Files hold tensors and
plain values alone (``torch.load(weights_only=True)``).
"""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from rmsnorm.files import write_whole

KEPT = 2


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
        """The last whole one; says of each that is not why it is not taken."""
        for path in reversed(self._paths()):
            try:
                if _digest(path) != path.name.split(".")[-2]:
                    raise ValueError("its content is not what its name's hash stands for")
                content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            except (ValueError, RuntimeError, OSError, EOFError, UnpicklingError) as error:
                reason = str(error).partition("\n")[0]
                self.say(f"checkpoint {path} is refused: {reason}; the one before it is taken, if there is one")
            else:
                return content
        return None

    def remove(self) -> None:
        """All of this run's: it is recorded, or done anew."""
        for path in self._paths():
            path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        pattern = re.compile(re.escape(self.stem) + r"\.step\d{9}\.[0-9a-f]{12}\.pt")
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if pattern.fullmatch(path.name))


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:12]
