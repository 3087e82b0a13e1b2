"""A run's curves as TensorBoard logs, beside what else is told of it."""

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from rmsnorm.experiments.train import Listener


class Log(Listener):
    """Writes to ``folder`` and hands everything on to ``beside``."""

    def __init__(self, folder: Path, beside: Listener) -> None:
        self.beside, self.writer = beside, SummaryWriter(str(folder))

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.close()

    def step(self, done: int, loss: float, learning_rate: float) -> None:
        self.writer.add_scalar("train/loss", loss, done)
        self.writer.add_scalar("train/learning_rate", learning_rate, done)
        self.beside.step(done, loss, learning_rate)

    def evaluating(self, split: str) -> None:
        self.beside.evaluating(split)

    def evaluated(self, done: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(f"valid/{name}", value, done)
        self.beside.evaluated(done, figures)
