"""What a training step costs with each normaliser: the time half of a comparison.

In one process, each round takes one step of every normaliser on the same batch, in a new random order for the
round; only steps of one round are compared. Whatever slows the machine for a while (another program, a warm
processor) slows all of them alike, and no normaliser always runs after the same other one.

The learning rate is 0: forward, backward, clipping and the optimizer do all of their work, and the weights stay those
of the start, so that none is timed on infinities or subnormal numbers.
"""

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rmsnorm_lab.experiments.learner import Learner, Setup
from rmsnorm_lab.experiments.task import Task


def measure(
    task: Task, setup: Setup, norms: Sequence[str], on_round: Callable[[int, int], None]
) -> dict[str, list[float]]:
    """Milliseconds of each round's step for every normaliser; ``on_round(done, total)`` is told of every round."""
    config = task.recipe.timing
    learners = {norm: Learner(task, setup, norm, config.seed) for norm in norms}
    beta1 = task.recipe.train.betas[0]
    order = list(norms)
    shuffle = random.Random(config.seed).shuffle

    milliseconds: dict[str, list[float]] = {norm: [] for norm in norms}
    total = config.warmup_rounds + config.rounds
    for done in range(total):
        batch = task.batch(done, config.seed)
        shuffle(order)
        for norm in order:
            before = time.perf_counter()
            learners[norm].step(batch, 0.0, beta1)
            elapsed = time.perf_counter() - before
            if done >= config.warmup_rounds:
                milliseconds[norm].append(round(1e3 * elapsed, 4))
        on_round(done + 1, total)
    return milliseconds


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles and its 95 % confidence interval; None for fewer than six values."""

    median: float
    quartiles: tuple[float, float]
    interval: tuple[float, float] | None


def spread(values: Sequence[float]) -> Spread:
    """The median of ``values`` and how sure it is.

    The interval lies between two order statistics, so it assumes no distribution: the number of values below the true
    median is binomial(n, ½), within ±1.96·√n/2 of n/2 in 95 % of cases. Even the least and the greatest of five values
    have the median between them in 94 % of cases only.
    """
    ordered = sorted(values)
    n = len(ordered)
    half = 1.96 * math.sqrt(n) / 2
    low, high = max(math.floor(n / 2 - half), 0), min(math.ceil(n / 2 + half), n - 1)
    return Spread(
        median=_quantile(ordered, 0.5),
        quartiles=(_quantile(ordered, 0.25), _quantile(ordered, 0.75)),
        interval=(ordered[low], ordered[high]) if n > 5 else None,
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def saved_against(reference: Sequence[float], times: Sequence[float]) -> Spread:
    """The share of the reference's step that a step saves, paired by round."""
    return spread([1 - time / base for time, base in zip(times, reference, strict=True)])


def share_beyond(none: Sequence[float], times: Sequence[float]) -> Spread:
    """The share of a step that its normalisers take: 1 − (step without any) / (step), paired by round."""
    return spread([1 - base / time for time, base in zip(times, none, strict=True)])
