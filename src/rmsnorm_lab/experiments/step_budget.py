"""The time of a training step with each normaliser where steps take seconds: within a time and within the memory.

Each network first takes one step under the profiler, on the largest batch of the rounds that are certain. It warms the
network up and tells how much memory a step needs. Then rounds follow as in step_times.py until the time is over.
Between steps no network holds gradients: beside weights and optimizers only one network's step is in memory.
"""

from collections.abc import Iterator, Sequence
from time import monotonic
from typing import Protocol

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments import norms, profile
from rmsnorm_lab.experiments.learner import Learner, Setup
from rmsnorm_lab.experiments.memory import available, give_back
from rmsnorm_lab.experiments.profile import Profile
from rmsnorm_lab.experiments.recipes.common import TimingConfig
from rmsnorm_lab.experiments.record import TimingResult
from rmsnorm_lab.experiments.step_times import interleaved
from rmsnorm_lab.experiments.task import Batch, Task

WHOLE = 1000
"""The units of a whole measurement, for its progress."""
_WARM_UP = 0.1
"""Of the seconds: rounds of warm-up end when they are over."""


class Watcher(Protocol):
    """Called as the work proceeds."""

    def advance(self, done: int, taken: int = 1) -> None: ...
    def doing(self, what: str) -> None: ...


def measure(task: Task, setup: Setup, names: Sequence[str], watcher: Watcher) -> TimingResult:
    """At least ``timing.fewest`` rounds of the normalisers ``names``, for ``timing.seconds`` or up to ``rounds``."""
    config, began = task.recipe.timing, monotonic()
    progress = _Progress(config, len(names), watcher)
    largest = max((task.batch(step, config.seed) for step in range(config.fewest)), key=_elements)
    learners: dict[str, Learner] = {}
    profiles: dict[str, Profile] = {}
    for norm in names:
        watcher.doing(f"first step with {norms.label(norm)}")
        if profiles:
            _check_memory(list(profiles.values()), len(names), task, setup)
        learner = Learner(task, setup, norm, config.seed)
        learner.start_optimizer()
        profiles[norm] = profile.of(learner, largest, steps=1)
        learner.optimizer.zero_grad()
        learners[norm] = learner
        give_back()
        progress.step()
    warm = 0

    def batches() -> Iterator[Batch]:
        nonlocal warm
        assert config.seconds is not None
        while warm < config.warmup_rounds and monotonic() - began < _WARM_UP * config.seconds:
            yield largest
            warm += 1
        done, first = 0, monotonic()
        while done < config.rounds:
            spent = monotonic() - began
            if done >= config.fewest and spent + (monotonic() - first) / done > config.seconds:
                return
            yield task.batch(done, config.seed)  # the same ones in every setting
            done += 1

    def after(learner: Learner) -> None:
        learner.optimizer.zero_grad()
        progress.step()

    times = interleaved(learners, batches(), config.seed, after)
    return TimingResult(
        milliseconds={norm: taken[warm:] for norm, taken in times.items()},
        profiled_share={norm: found.norm_share for norm, found in profiles.items()},
        peak_memory={norm: found.peak_memory for norm, found in profiles.items()},
        memory=needed(list(profiles.values()), len(names)),
    )


def _elements(batch: Batch) -> int:
    return sum(part.numel() for part in batch)


def needed(found: Sequence[Profile], networks: int) -> int:
    """Bytes of that many networks at the fullest moment of a step, from the profiles of some of them."""
    held = [each.held for each in found]
    return sum(held) + (networks - len(held)) * max(held) + max(each.peak_memory - each.held for each in found)


def _check_memory(found: Sequence[Profile], networks: int, task: Task, setup: Setup) -> None:
    """Raise if the networks that are still to be made do not fit beside those that are there."""
    left, whole = available(setup.device), needed(found, networks)
    if left is not None and whole - sum(each.held for each in found) > left:
        raise UserError(
            f"timing {networks} normalisers of {task.name} together takes {whole / 2**30:.1f} GiB of memory; "
            f"{(left + sum(each.held for each in found)) / 2**30:.1f} GiB are there. Time fewer of them (--norm), or "
            f"take a smaller batch (--set train.batch=N; it is {task.recipe.train.batch:,})."
        )


class _Progress:
    """Steps told as thousandths of the whole, whose number of rounds is estimated from the steps so far."""

    def __init__(self, config: TimingConfig, networks: int, watcher: Watcher) -> None:
        self.config, self.networks, self.watcher = config, networks, watcher
        self.began, self.steps, self.told = monotonic(), 0, 0

    def step(self) -> None:
        assert self.config.seconds is not None
        self.steps += 1
        one_round = self.networks * (monotonic() - self.began) / self.steps
        rounds = min(max(int(self.config.seconds / one_round), 1 + self.config.fewest), 1 + self.config.rounds)
        done = min(max(WHOLE * self.steps // (self.networks * rounds), self.told), WHOLE)
        self.watcher.advance(done, done - self.told)
        self.told = done
