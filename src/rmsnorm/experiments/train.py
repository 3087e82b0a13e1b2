"""One seeded training run, on Lightning Fabric: the quality half of a comparison."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from rmsnorm.experiments.recipes.common import TrainConfig
from rmsnorm.experiments.task import Batch, Task

DIVERGED_ABOVE = 1.25
"""A run whose validation loss ends above this multiple of the untrained network's has diverged."""


@dataclass(frozen=True)
class Setup:
    """How a task's networks are run; with the task's recipe, the normaliser and the seed it decides a run."""

    kernels: str = "rmsnorm"
    device: str = "cpu"
    precision: str = "32-true"


@dataclass
class Curve:
    """Validation along a run. ``None`` stands for a number that is not finite."""

    step: list[int]
    seconds: list[float]
    """Time spent in training steps so far, without evaluations."""
    train_loss: list[float | None]
    """Mean of the training losses since the point before."""
    valid: dict[str, list[float | None]]
    """Each metric, and "loss"."""


@dataclass(frozen=True)
class Outcome:
    status: str
    """``finished`` or ``diverged``."""
    diverged_at: int | None
    """The step whose loss was not finite, or the last one if the validation loss ended far above the first."""
    quality: dict[str, float] | None
    """Every metric on the test split at the end; ``None`` if diverged."""
    seconds: float
    curve: Curve

    def as_record(self) -> dict[str, Any]:
        return asdict(self)


class Learner:
    """A model with its optimizer and the one step that both training and timing take."""

    def __init__(self, task: Task, setup: Setup, norm: str, seed: int) -> None:
        device = torch.device(setup.device)
        self.fabric = Fabric(
            accelerator=device.type,
            devices=1 if device.index is None else [device.index],
            precision=setup.precision,  # type: ignore[arg-type]  # one of recipes.common.PRECISIONS
        )
        self.task, self.config = task, task.recipe.train
        self.learning_rate = task.recipe.learning_rate(norm)
        torch.manual_seed(seed)
        model = task.model(norm, setup.kernels)
        task.initialise(model, task.batch(0, seed))
        self.model, self.optimizer = self.fabric.setup(model, optimizer_for(model, self.config, device.type))

    def step(self, batch: Batch, learning_rate: float, beta1: float) -> float:
        """One step of training; the loss. Reading it waits for the device, so the call can be timed."""
        for group in self.optimizer.param_groups:
            group["lr"], group["betas"] = learning_rate, (beta1, group["betas"][1])
        total, weight = self.task.loss(self.model, self.fabric.to_device(batch))
        loss = total / weight
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        self._clip()
        self.optimizer.step()
        return float(loss.item())

    def _clip(self) -> None:
        # Not finite is not an error here: a run that diverges is a result, which the loss of the next step shows.
        if self.config.clip == "global":
            self.fabric.clip_gradients(
                self.model, self.optimizer, max_norm=self.config.clip_norm, error_if_nonfinite=False
            )
        elif self.config.clip == "per_tensor":
            for parameter in self.model.parameters():
                torch.nn.utils.clip_grad_norm_(parameter, self.config.clip_norm)

    @torch.no_grad()
    def evaluate(self, split: str) -> dict[str, float]:
        """The task's figures on ``split``, on the plain model."""
        model = self.model.module
        model.eval()
        with self.fabric.autocast():
            found = self.task.evaluate(model, split)
        model.train()
        return found


def optimizer_for(model: nn.Module, config: TrainConfig, device: str) -> torch.optim.Optimizer:
    """Adam or AdamW as the recipe has it; weight decay for matrices, not for gains and biases."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return kind(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=0.0,
        betas=config.betas,
        eps=config.optimizer_eps,
        fused=device in ("cpu", "cuda"),
    )


def schedule_at(step: int, config: TrainConfig, peak: float) -> tuple[float, float]:
    """(learning rate, Adam's β₁) of a step, counted from 0; ``peak`` is the learning rate where the warm-up ends."""
    late = step >= config.steps / 2
    beta1 = config.betas[0] if config.late_beta1 is None or not late else config.late_beta1
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps, beta1
    final, rest = config.final_learning_rate, config.steps - config.warmup_steps
    if config.schedule == "cosine":
        progress = (step + 1 - config.warmup_steps) / max(rest, 1)
        return final + (peak - final) * (1 + math.cos(math.pi * progress)) / 2, beta1
    if config.schedule == "inverse_sqrt":
        return peak * math.sqrt(max(config.warmup_steps, 1) / (step + 1)), beta1
    if config.schedule == "linear_second_half" and late:
        return peak + (final - peak) * (2 * (step + 1) / config.steps - 1), beta1
    return peak, beta1


def evaluation_steps(config: TrainConfig) -> list[int]:
    """The numbers of steps after which the validation split is evaluated: 0, then evenly up to the last."""
    return sorted({round(config.steps * i / config.evaluations) for i in range(config.evaluations + 1)})


def train(task: Task, setup: Setup, norm: str, seed: int, on_step: Callable[[int, float], None]) -> Outcome:
    """Train one model; ``on_step(steps done, loss)`` is told of every step.

    The seed decides the initial weights and the order of the batches, and nothing else does.
    """
    config = task.recipe.train
    learner = Learner(task, setup, norm, seed)
    stops = evaluation_steps(config)

    curve = Curve([], [], [], {key: [] for key in [*(metric.key for metric in task.metrics), "loss"]})
    started, training_seconds = time.perf_counter(), 0.0
    since: list[float] = []
    for done in range(config.steps + 1):
        if done in stops:
            found = learner.evaluate("valid")
            curve.step.append(done)
            curve.seconds.append(round(training_seconds, 4))
            curve.train_loss.append(_finite(sum(since) / len(since)) if since else None)
            for key, column in curve.valid.items():
                column.append(_finite(found[key]))
            since = []
        if done == config.steps:
            break
        batch = task.batch(done, seed)
        before = time.perf_counter()
        loss = learner.step(batch, *schedule_at(done, config, learner.learning_rate))
        training_seconds += time.perf_counter() - before
        since.append(loss)
        if not math.isfinite(loss):
            return Outcome("diverged", done + 1, None, round(time.perf_counter() - started, 3), curve)
        on_step(done + 1, loss)

    first, last = curve.valid["loss"][0], curve.valid["loss"][-1]
    quality = learner.evaluate("test")
    seconds = round(time.perf_counter() - started, 3)
    if first is None or last is None or last > DIVERGED_ABOVE * first or not all(map(math.isfinite, quality.values())):
        return Outcome("diverged", config.steps, None, seconds, curve)
    return Outcome("finished", None, {key: round(value, 6) for key, value in quality.items()}, seconds, curve)


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
