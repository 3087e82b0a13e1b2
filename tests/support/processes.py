"""Functions and commands in several processes at once, each forked from a server that has imported torch already.

A process that imports torch and Lightning Fabric itself takes 4 s of a processor before it begins; one of these 0.1 s.
"""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

multiprocessing.set_forkserver_preload(["rmsnorm.torch", "lightning_fabric", "rmsnorm_lab.experiments.training"])


def together(count: int, function: Callable[..., None], *arguments: Any) -> None:
    """``function(rank, *arguments)`` in each process, on one thread; what one of them raises is raised here.

    The function must be importable from tests/support: importing a test module would take each process seconds.
    """
    torch.multiprocessing.start_processes(
        _on_one_thread, (function, arguments), nprocs=count, start_method="forkserver"
    )


def _on_one_thread(rank: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    function(rank, *arguments)


def command(count: int, words: list[str], folder: Path) -> tuple[str, str]:
    """What ``rmsnorm`` with these words says and what it reports, in ``count`` processes as torchrun starts them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    together(count, _command, count, port, words, folder)
    return tuple("".join(path.read_text() for path in sorted(folder.glob(f"{name}.*"))) for name in ("said", "errors"))


def _command(rank: int, count: int, port: int, words: list[str], folder: Path) -> None:
    # The variables that torchrun sets, and by which torch and Fabric know it.
    for name, value in {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "GROUP_RANK": 0,
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": "test",
    }.items():
        os.environ[name] = str(value)
    for number, name in ((1, "said"), (2, "errors")):
        file = os.open(folder / f"{name}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    from rmsnorm.cli import main

    status = main(words)
    sys.stdout.flush()
    sys.stderr.flush()
    assert status == 0, (folder / f"errors.{rank}").read_text()[-3000:]
