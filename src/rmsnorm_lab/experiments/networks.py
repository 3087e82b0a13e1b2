"""The trained network of a finished run, in files named after its record.

The weights' file holds only tensors and plain values (``torch.load(weights_only=True)``). Its checksums show whether
it is damaged, and the hashes in it whether one of the other files is.
"""

import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.files import sha256_of, write_whole

_AGAIN = "Give rmsnorm train the settings of this run, and it is made, from the last checkpoint if one is left."

SUFFIX = ".network.pt"


class Network(NamedTuple):
    """What is needed to build a network without its task's data."""

    sizes: dict[str, int]
    """The task's ``sizes``."""
    weights: dict[str, Tensor]
    """The state of the module that was tested."""
    files: dict[str, str]
    """Name -> SHA-256 of the task's ``files()``, which lie beside it."""


def path_of(record: Path) -> Path:
    """The path of a record's network."""
    return record.with_suffix(SUFFIX)


def keep(record: Path, sizes: dict[str, int], weights: dict[str, Tensor], files: dict[str, bytes]) -> None:
    """Write the network of a record, and then the files without which it cannot be used."""
    network = Network(sizes, weights, {name: sha256_of(content) for name, content in files.items()})
    write_whole(path_of(record), lambda file: torch.save(network._asdict(), file))
    for name, content in files.items():
        write_whole(_beside(record, name), content)


def files_of(record: Path, network: Network) -> dict[str, bytes]:
    """The files without which the network of a record cannot be used.

    Raises:
        UserError: one is not there, or is not as it was kept.
    """
    files = {}
    for name, digest in network.files.items():
        path = _beside(record, name)
        if not path.is_file():
            raise UserError(f"{record} must have {path.name} beside it; it is not there. {_AGAIN}")
        files[name] = path.read_bytes()
        if sha256_of(files[name]) != digest:
            raise UserError(f"{path} must be as it was kept with the network; it was changed or damaged. {_AGAIN}")
    return files


def read(record: Path) -> Network:
    """The network of a record.

    Raises:
        UserError: it is not there, or damaged.
    """
    path = path_of(record)
    if not path.is_file():
        raise UserError(
            f"{record} must have its network beside it; {path.name} is not there (rmsnorm compare keeps none). {_AGAIN}"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"{damaged!r} in it is not what its checksum says")
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        network = Network(**content)
        if not all(isinstance(part, dict) for part in network) or any(
            Path(name).name != name for name in network.files
        ):
            raise ValueError("it holds something else")
        return network
    except (zipfile.BadZipFile, UnpicklingError, ValueError, TypeError, EOFError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{path} must be a network as this program kept it; it is damaged: {reason}. {_AGAIN}"
        ) from None


def _beside(record: Path, name: str) -> Path:
    return record.with_suffix(f".{name}")
