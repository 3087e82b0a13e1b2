"""The time of a training step with each normaliser.

In one process, each round takes one step of every normaliser on the same batch (see :mod:`rmsnorm.timing`).

The learning rate is 0: forward, backward, clipping and the optimizer do all of their work, and the weights stay those
of the start, so that none is timed on infinities or subnormal numbers.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from rmsnorm.timing import interleave, wall_clock
from rmsnorm_lab.experiments.learner import Learner, Setup
from rmsnorm_lab.experiments.task import Batch, Task


def measure(
    task: Task, setup: Setup, norms: Sequence[str], on_round: Callable[[int, int], None]
) -> dict[str, list[float]]:
    """Milliseconds of each round's step for every normaliser; ``on_round(done, total)`` is called after each round."""
    config = task.recipe.timing
    learners = {norm: Learner(task, setup, norm, config.seed) for norm in norms}
    total = config.warmup_rounds + config.rounds

    def batches() -> Iterator[Batch]:
        for done in range(total):
            yield task.batch(done, config.seed)
            on_round(done + 1, total)

    times = interleaved(learners, batches(), config.seed)
    return {norm: taken[config.warmup_rounds :] for norm, taken in times.items()}


def interleaved(
    learners: dict[str, Learner],
    batches: Iterable[Batch],
    seed: int,
    after: Callable[[Learner], None] = lambda learner: None,
) -> dict[str, list[float]]:
    """Milliseconds of every normaliser's step, a round for each batch; ``after`` each step, outside of the clock."""
    batch: Batch = ()

    def rounds() -> Iterator[None]:
        nonlocal batch
        for batch in batches:  # noqa: B007  the steps read it
            yield

    def milliseconds(learner: Learner) -> float:
        taken = wall_clock(lambda: learner.step(batch, 0.0, learner.config.betas[0]))
        after(learner)
        return round(1e-6 * taken, 4)

    samples = {norm: partial(milliseconds, learner) for norm, learner in learners.items()}
    return interleave(samples, rounds(), seed=seed)
