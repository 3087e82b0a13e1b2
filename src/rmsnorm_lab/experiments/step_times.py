"""The time of a training step with each normaliser.

In one process, each round takes one step of every normaliser on the same batch (see :mod:`rmsnorm.timing`).

The learning rate is 0: forward, backward, clipping and the optimizer do all of their work, and the weights stay those
of the start, so that none is timed on infinities or subnormal numbers.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from rmsnorm.timing import interleave, wall_clock
from rmsnorm_lab.experiments.learner import Learner, Setup
from rmsnorm_lab.experiments.task import Task


def measure(
    task: Task, setup: Setup, norms: Sequence[str], on_round: Callable[[int, int], None]
) -> dict[str, list[float]]:
    """Milliseconds of each round's step for every normaliser; ``on_round(done, total)`` is called after each round."""
    config = task.recipe.timing
    learners = {norm: Learner(task, setup, norm, config.seed) for norm in norms}
    beta1 = task.recipe.train.betas[0]
    total = config.warmup_rounds + config.rounds
    batch: Any = None

    def rounds() -> Iterator[int]:
        nonlocal batch
        for done in range(total):
            batch = task.batch(done, config.seed)
            yield done
            on_round(done + 1, total)

    def milliseconds(learner: Learner) -> float:
        return round(1e-6 * wall_clock(lambda: learner.step(batch, 0.0, beta1)), 4)

    samples = {norm: partial(milliseconds, learner) for norm, learner in learners.items()}
    times = interleave(samples, rounds(), seed=config.seed)
    return {norm: taken[config.warmup_rounds :] for norm, taken in times.items()}
