"""The trained network of a finished run: one file beside its record, which it is named after.

It holds tensors and plain numbers alone (``torch.load(weights_only=True)``), and its checksums tell a damaged file.
"""

import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rmsnorm.errors import UserError
from rmsnorm.files import write_whole


class Network(NamedTuple):
    """What a network is built of, without its task's data."""

    sizes: dict[str, int]
    """The task's ``sizes``."""
    weights: dict[str, Tensor]
    """The state of the module that was tested."""


def path_of(record: Path) -> Path:
    """Where the network of a record is."""
    return record.with_suffix(".network.pt")


def keep(record: Path, network: Network) -> None:
    """Write the network of a record."""
    write_whole(path_of(record), lambda file: torch.save(network._asdict(), file))


def read(record: Path) -> Network:
    """The network of a record.

    Raises:
        UserError: it is not there, or damaged.
    """
    path = path_of(record)
    if not path.is_file():
        raise UserError(
            f"{record} must have its network beside it; {path.name} is not there. `rmsnorm train` keeps it (`rmsnorm "
            "compare` keeps records alone): train with the same settings and --out, and it is made."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"{damaged!r} in it is not what its checksum says")
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return Network(**content)
    except (zipfile.BadZipFile, UnpicklingError, ValueError, TypeError, EOFError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{path} must be a network as this program kept it; it is damaged: {reason}. Delete it and train again "
            "with the same settings: what was trained is taken from the last checkpoint."
        ) from None
