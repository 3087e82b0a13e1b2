"""A process in which Triton interprets its kernels, on tensors of a CPU; it runs one check after another.

Triton reads TRITON_INTERPRET when kernels are decorated, so a process interprets all of them or none. The tests' own
process compiles kernels (test_compile.py). One process a test worker is started, at its first check.
"""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection

import pytest

SECONDS = 300  # for one check; the longest takes 10 on idle cores
SEED = 20191016


class InterpreterProcess:
    """Calls (function, arguments) → how often each kernel has served; a failure there fails the test here.

    Functions are sent by their names and must be importable from tests/support.
    """

    def __init__(self) -> None:
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None

    def __call__(self, function: Callable[..., None], *arguments: object) -> dict[str, int]:
        if self._process is None:
            self._start()
        assert self._connection is not None
        self._connection.send((function, arguments))
        try:
            if not self._connection.poll(SECONDS):
                self.end()
                pytest.fail(f"{function.__name__} took more than {SECONDS} s in the interpreter", pytrace=False)
            served, error = self._connection.recv()
        except (EOFError, ConnectionError):
            self.end()
            pytest.fail(f"the interpreter's process died in {function.__name__}", pytrace=False)
        if error:
            pytest.fail(error, pytrace=False)
        return served

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would have imported Triton already
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other,), daemon=True)
        self._process.start()
        other.close()  # the child's copy alone is open, so that its death is seen here

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = self._connection = None


def _serve(connection: Connection) -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    import torch

    import triton_interpreter

    torch.set_num_threads(1)
    triton_interpreter.install()
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        triton_interpreter.served.clear()
        torch.manual_seed(SEED)
        error = None
        try:
            function(*arguments)
        except BaseException:
            error = traceback.format_exc()
        connection.send((dict(triton_interpreter.served), error))
