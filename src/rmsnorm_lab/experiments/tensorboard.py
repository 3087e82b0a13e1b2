"""A run's curves as TensorBoard logs."""

import threading
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from rmsnorm_lab.experiments.run import Listener
from rmsnorm_lab.files import errors_named


class Log(Listener):
    """Writes to ``folder`` and passes everything on to ``beside``."""

    def __init__(self, folder: Path, beside: Listener) -> None:
        self.folder, self.beside, self._hook = folder, beside, threading.excepthook
        with errors_named(folder):
            self.writer = SummaryWriter(str(folder))

    def __enter__(self) -> "Log":
        # The writer's thread keeps its error for the next call, which raises it: no need to print it too.
        threading.excepthook = lambda told: None if told.exc_type is OSError else self._hook(told)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with errors_named(self.folder):
                self.writer.close()
        finally:
            threading.excepthook = self._hook

    def _add(self, name: str, value: float, done: int) -> None:
        with errors_named(self.folder):
            self.writer.add_scalar(name, value, done)

    def step(self, done: int, loss: float, learning_rate: float) -> None:
        self._add("train/loss", loss, done)
        self._add("train/learning_rate", learning_rate, done)
        self.beside.step(done, loss, learning_rate)

    def evaluating(self, split: str) -> None:
        self.beside.evaluating(split)

    def evaluated(self, done: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self._add(f"valid/{name}", value, done)
        self.beside.evaluated(done, figures)
