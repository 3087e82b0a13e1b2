"""One seeded training run, on Lightning Fabric: the quality half of a comparison."""

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from lightning_fabric import Fabric
from torch import Tensor

from rmsnorm_lab.errors import UserError, nearest
from rmsnorm_lab.experiments import interrupts
from rmsnorm_lab.experiments.checkpoints import Checkpoints
from rmsnorm_lab.experiments.learner import Learner, Setup, schedule_at
from rmsnorm_lab.experiments.recipes.common import TrainConfig
from rmsnorm_lab.experiments.record import Curve, RunResult
from rmsnorm_lab.experiments.task import Metric, Task

DIVERGED_ABOVE = 1.25
"""A run whose training loss ends above this multiple of its first has diverged. (That of validation may rise so far and
be over-fitting, with the headline figure still improving.)"""


class Listener:
    """Receives the events of a run; this one ignores them."""

    def step(self, done: int, loss: float, learning_rate: float) -> None: ...
    def evaluating(self, split: str) -> None: ...
    def evaluated(self, done: int, figures: dict[str, float]) -> None: ...


@dataclass
class _Progress:
    """What a checkpoint holds besides the network and the optimizer."""

    done: int
    seconds: float
    first: float
    """The loss of the first step."""
    since: list[float]
    """Losses since the last evaluation."""
    curve: Curve
    best: dict[str, Tensor] | None = None
    """The weights of the best evaluation, if the recipe asks for them."""
    astray: int | None = None
    """The step from which on every loss has been above DIVERGED_ABOVE times the first one."""

    def add(self, loss: float, seconds: float) -> None:
        """A step was taken."""
        self.first = loss if self.done == 0 else self.first
        self.done += 1
        self.seconds += seconds
        self.since.append(loss)
        if loss <= DIVERGED_ABOVE * self.first:
            self.astray = None
        elif self.astray is None:
            self.astray = self.done


class Run:
    """The training of one network. The seed decides the initial weights and the batches, and nothing else does.

    Arguments:
        learning_rate: another than the recipe's.
        fabric: several processes, if there are (default: one).
        checkpoints: where to go on from, and where to keep the run (default: nowhere).
        every: steps between checkpoints (default: at each evaluation).
    """

    def __init__(
        self,
        task: Task,
        setup: Setup,
        norm: str,
        seed: int,
        *,
        learning_rate: float | None = None,
        fabric: Fabric | None = None,
        checkpoints: Checkpoints | None = None,
        every: int | None = None,
    ) -> None:
        self.task, self.config, self.seed = task, task.recipe.train, seed
        self.learner = Learner(task, setup, norm, seed, fabric)
        self.learning_rate = learning_rate or task.recipe.learning_rate(norm)
        self.checkpoints, self.every = checkpoints, every
        self.stops = evaluation_steps(self.config)
        self.chosen_by = chosen_by(self.config, task.metrics)
        columns: dict[str, list[float | None]] = {key: [] for key in [*(m.key for m in task.metrics), "loss"]}
        self.progress = _Progress(0, 0.0, math.nan, [], Curve([], [], [], columns))
        self.saved = 0
        if checkpoints is not None:
            self._resume(checkpoints)

    def finish(self, listener: Listener = Listener()) -> RunResult:  # noqa: B008  # it has no state
        """Train to the end. An interruption leaves a checkpoint of the last step.

        Several processes continue until all of them know of it, since each may be waiting for the others.
        """
        together = self.learner.fabric.world_size > 1
        try:
            with interrupts.held() if together else contextlib.nullcontext():
                return self._train(listener, together)
        except KeyboardInterrupt:
            if self.checkpoints is not None and self.progress.done > self.saved:
                self._save(self.checkpoints)
            raise

    def _train(self, listener: Listener, together: bool) -> RunResult:
        config, progress, learner = self.config, self.progress, self.learner
        while True:
            done = progress.done
            if done in self.stops and done not in progress.curve.step:
                self._evaluate(listener)
            if self.checkpoints is not None and done > self.saved and self._to_be_saved(done):
                self._save(self.checkpoints)
            if done == config.steps:
                return self._outcome(listener)
            learner.seed_step(done)
            batch = self.task.batch(done, self.seed)
            rate, beta1 = schedule_at(done, config, self.learning_rate)
            with interrupts.held():
                before = time.perf_counter()
                loss = learner.step(batch, rate, beta1)
                progress.add(loss, time.perf_counter() - before)
            if not math.isfinite(loss):
                return self._outcome_of("diverged", None)
            listener.step(progress.done, loss, rate)
            if together and learner.anywhere(interrupts.pending()):
                raise KeyboardInterrupt

    def _to_be_saved(self, done: int) -> bool:
        return done == self.config.steps or (done % self.every == 0 if self.every else done in self.stops)

    def weights(self) -> dict[str, Tensor]:
        """The weights to test, on the CPU: the last, or the best if the recipe says so. All processes call it."""
        if self.progress.best is not None:
            return self.progress.best
        return {name: tensor.detach().cpu() for name, tensor in self.learner.network().state_dict().items()}

    def _evaluate(self, listener: Listener) -> None:
        listener.evaluating("valid")
        found = self.learner.evaluate("valid")
        with interrupts.held():
            self._add_point(found)
        listener.evaluated(self.progress.done, found)

    def _add_point(self, found: dict[str, float]) -> None:
        progress, curve = self.progress, self.progress.curve
        curve.step.append(progress.done)
        curve.seconds.append(round(progress.seconds, 4))
        curve.train_loss.append(_finite(sum(progress.since) / len(progress.since)) if progress.since else None)
        for key, column in curve.valid.items():
            column.append(_finite(found.get(key, math.nan)))  # a figure of the test split alone
        progress.since = []
        if self.config.best and best_point(self.chosen_by, curve.valid) == len(curve.step) - 1:
            progress.best = {name: t.detach().cpu().clone() for name, t in self.learner.network().state_dict().items()}

    def _outcome(self, listener: Listener) -> RunResult:
        last = self.progress.curve.train_loss[-1]
        if last is None or last > DIVERGED_ABOVE * self.progress.first:
            return self._outcome_of("diverged", None)
        listener.evaluating("test")
        quality = self.learner.evaluate("test", self.progress.best)
        if not all(map(math.isfinite, quality.values())):
            return self._outcome_of("diverged", None)
        return self._outcome_of("finished", {key: round(value, 6) for key, value in quality.items()})

    def _outcome_of(self, status: str, quality: dict[str, float] | None) -> RunResult:
        return RunResult(
            status=status,
            diverged_at=None if status == "finished" else self.progress.astray or self.progress.done,
            quality=quality,
            seconds=round(self.progress.seconds, 3),
            curve=self.progress.curve,
            metrics=self.task.metrics,
            references=dict(self.task.references),
            parameters=self.learner.parameters,
        )

    def _save(self, checkpoints: Checkpoints) -> None:
        with interrupts.held():
            content = {**self.learner.state_dict(), "progress": asdict(self.progress)}
            if self.learner.fabric.global_rank == 0:
                checkpoints.save(self.progress.done, content)
            self.saved = self.progress.done

    def _resume(self, checkpoints: Checkpoints) -> None:
        fabric = self.learner.fabric
        found = fabric.broadcast(checkpoints.load() if fabric.global_rank == 0 else None)
        if found is None:
            return
        try:
            self.learner.load_state_dict(found)
            progress = _Progress(**{**found["progress"], "curve": Curve(**found["progress"]["curve"])})
            if not 0 <= progress.done <= self.config.steps:
                raise ValueError(f"it is of step {progress.done} of {self.config.steps}")
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"the checkpoints in {checkpoints.folder} must be of this version's network; loading one failed: "
                f"{' '.join(str(error).split())[:200]}. Pass --overwrite, and the run is done again."
            ) from None
        self.progress, self.saved = progress, progress.done
        checkpoints.say(f"goes on from step {self.progress.done}")


def chosen_by(config: TrainConfig, metrics: Sequence[Metric]) -> tuple[list[str], bool]:
    """The columns of the validation curve whose sum decides which weights are best, and whether more is better."""
    better = {each.key: each.higher_is_better for each in metrics} | {"loss": False}
    keys = [metrics[0].key] if config.best_by == "headline" else config.best_by.split("+")
    if unknown := [key for key in keys if key not in better]:
        raise UserError(
            f"train.best_by must be headline, or one or more of {', '.join(better)} joined by +; "
            f"got {unknown[0]!r}.{nearest(unknown[0], tuple(better))}"
        )
    if len({better[key] for key in keys}) > 1:
        raise UserError(
            f"train.best_by must add up figures of which more is better, or less; got {config.best_by}. Leave one out."
        )
    return keys, better[keys[0]]


def best_point(by: tuple[list[str], bool], valid: dict[str, list[float | None]]) -> int | None:
    """The place of the best point of a validation curve, the last of equals; None if no point is finite.

    ``by``: of :func:`chosen_by`.
    """
    keys, higher = by
    points = zip(*(valid[key] for key in keys), strict=True)
    sums = {place: sum(point) for place, point in enumerate(points) if None not in point}
    return max(sums, key=lambda place: (sums[place] if higher else -sums[place], place), default=None)


def evaluation_steps(config: TrainConfig) -> list[int]:
    """The numbers of steps after which the validation split is evaluated: 0, then evenly up to the last."""
    return sorted({round(config.steps * i / config.evaluations) for i in range(config.evaluations + 1)})


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
