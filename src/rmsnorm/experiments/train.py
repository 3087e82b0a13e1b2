"""One seeded training run, on Lightning Fabric: the quality half of a comparison."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor

from rmsnorm.experiments.models.transformer import Transformer
from rmsnorm.experiments.normalizers import norm_maker
from rmsnorm.experiments.recipes import Settings, TrainConfig
from rmsnorm.experiments.tasks.language import Text, batch_of, fixed_windows

NATS_TO_BITS = 1 / math.log(2)

DIVERGED_ABOVE = 1.25
"""A run whose held-out loss ends above this multiple of ln(vocabulary), the loss of pure guessing, has diverged."""


@dataclass
class Curve:
    """Bits per character along a run. ``None`` stands for a loss that is not finite."""

    step: list[int]
    held_out_bits: list[float | None]
    train_bits: list[float | None]
    """Mean of the training losses since the point before."""
    seconds: list[float]
    """Time spent in training steps so far, without evaluations."""


@dataclass(frozen=True)
class Outcome:
    status: str
    """``finished`` or ``diverged``."""
    diverged_at: int | None
    """The step whose loss was not finite, or the last one if the loss ended far above that of guessing."""
    held_out_bits: float | None
    """At the end; ``None`` if diverged."""
    seconds: float
    curve: Curve

    def as_record(self) -> dict[str, Any]:
        return asdict(self)


class Learner:
    """A model with its optimizer and the one step that both training and timing take."""

    def __init__(self, settings: Settings, norm: str, vocabulary: int, seed: int) -> None:
        device = torch.device(settings.device)
        self.fabric = Fabric(
            accelerator=device.type,
            devices=1 if device.index is None else [device.index],
            precision=settings.precision,  # type: ignore[arg-type]  # one of recipes.PRECISIONS
        )
        torch.manual_seed(seed)
        model = Transformer(vocabulary, settings.model, norm_maker(norm, settings.kernels))
        config = settings.train
        matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
        gains = [parameter for parameter in model.parameters() if parameter.ndim == 1]
        optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": config.weight_decay}, {"params": gains, "weight_decay": 0.0}],
            lr=0.0,
            betas=config.betas,
            fused=device.type in ("cpu", "cuda"),
        )
        self.clip_norm = config.clip_norm
        self.model, self.optimizer = self.fabric.setup(model, optimizer)

    def step(self, inputs: Tensor, targets: Tensor, learning_rate: float) -> float:
        """One step of training; the loss in nats. Reading it waits for the device, so the call can be timed."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        loss = self.loss(inputs, targets)
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        # Not an error here: a run that diverges is a result, which the loss of the next step shows.
        self.fabric.clip_gradients(self.model, self.optimizer, max_norm=self.clip_norm, error_if_nonfinite=False)
        self.optimizer.step()
        return loss.item()

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of a batch, in nats a character."""
        inputs, targets = self.fabric.to_device((inputs, targets))
        return F.cross_entropy(self.model(inputs).float().flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def evaluate(self, windows: tuple[Tensor, Tensor], batch: int) -> float:
        """Mean loss in nats a character over all windows."""
        pairs = list(zip(*(part.split(batch) for part in windows), strict=True))
        total = sum(self.loss(inputs, targets).item() * len(inputs) for inputs, targets in pairs)
        return total / len(windows[0])


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """Linear from 0 over the warm-up, then half a cosine down to the final learning rate at the last step."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step + 1 - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * cosine


def evaluation_steps(config: TrainConfig) -> list[int]:
    """The numbers of steps after which the held-out windows are evaluated: 0, then evenly up to the last."""
    return sorted({round(config.steps * i / config.evaluations) for i in range(config.evaluations + 1)})


def train(settings: Settings, norm: str, seed: int, text: Text, on_step: Callable[[int, float], None]) -> Outcome:
    """Train one model; ``on_step(steps done, loss in bits)`` is told of every step.

    The seed decides the initial weights and the order of the batches, and nothing else does.
    """
    config, context = settings.train, settings.model.context
    learner = Learner(settings, norm, text.vocabulary, seed)
    generator = torch.Generator().manual_seed(seed)
    windows = fixed_windows(text.held_out, config.held_out_windows, context)
    stops = evaluation_steps(config)

    curve = Curve([], [], [], [])
    started, training_seconds = time.perf_counter(), 0.0
    since: list[float] = []
    loss = math.nan
    for done in range(config.steps + 1):
        if done in stops:
            held_out = learner.evaluate(windows, batch=64)
            curve.step.append(done)
            curve.held_out_bits.append(_bits(held_out))
            curve.train_bits.append(_bits(sum(since) / len(since)) if since else None)
            curve.seconds.append(round(training_seconds, 4))
            since = []
        if done == config.steps:
            break
        inputs, targets = batch_of(text.train, config.batch, context, generator)
        before = time.perf_counter()
        loss = learner.step(inputs, targets, learning_rate_at(done, config))
        training_seconds += time.perf_counter() - before
        since.append(loss)
        if not math.isfinite(loss):
            return Outcome("diverged", done + 1, None, round(time.perf_counter() - started, 3), curve)
        on_step(done + 1, loss * NATS_TO_BITS)

    seconds = round(time.perf_counter() - started, 3)
    if not held_out <= DIVERGED_ABOVE * math.log(text.vocabulary):  # written so that NaN counts as diverged
        return Outcome("diverged", config.steps, None, seconds, curve)
    return Outcome("finished", None, curve.held_out_bits[-1], seconds, curve)


def _bits(nats: float) -> float | None:
    return round(nats * NATS_TO_BITS, 6) if math.isfinite(nats) else None
