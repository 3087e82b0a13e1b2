"""One training step under torch.profiler: the time inside the normalisers, and the most memory that tensors held.

Forward: the calls of what norms/base.py marks, modules and functions that modules keep as ``normalise``. Backward: the
autograd nodes that those calls made, found by their sequence numbers. The profiler's own cost makes such a step slower
than a plain one. The share by ablation (rmsnorm.timing.saved) is of plain steps and cannot say where their time
went.
"""

import statistics
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rmsnorm.torch import GRU, LSTM
from rmsnorm_lab.experiments.norms.base import norms_wrapped
from rmsnorm_lab.experiments.task import Batch, Task

if TYPE_CHECKING:  # it needs Lightning Fabric, and what is here besides `steps` does not
    from rmsnorm_lab.experiments.learner import Learner, Setup

STEPS, WARM_UP = 3, 2
_NORM, _STEP = "rmsnorm: norm", "rmsnorm: step"


@dataclass(frozen=True)
class Profile:
    norm_share: float | None
    """Of a step, forward and backward; median over STEPS. None where nothing normalises, where a recurrence normalises
    within one kernel, and on other devices, whose time the calls do not tell."""
    peak_memory: int
    """Bytes of tensors at the fullest moment of a step: what is there before it, and what it adds."""
    held: int
    """Bytes of what is there before it."""


def steps(task: Task, setup: "Setup", norm: str) -> Profile:
    """Profile the step that ``timing.measure`` times, after WARM_UP unmeasured ones."""
    from rmsnorm_lab.experiments.learner import Learner

    learner = Learner(task, setup, norm, task.recipe.timing.seed)
    batch, beta1 = task.batch(0, task.recipe.timing.seed), task.recipe.train.betas[0]
    for _ in range(WARM_UP):
        learner.step(batch, 0.0, beta1)
    return of(learner, batch, STEPS)


def of(learner: "Learner", batch: Batch, steps: int) -> Profile:
    """Profile ``steps`` of a learner that has taken a step before."""
    beta1, network = learner.config.betas[0], learner.network()
    held = _bytes_held(learner)
    told = learner.setup.device == "cpu" and not any(map(_fused, network.modules()))
    with norms_wrapped(network, _named) as marked:
        found = [_profiled(lambda: learner.step(batch, 0.0, beta1)) for _ in range(steps)]
    shares, peaks = zip(*found, strict=True)
    return Profile(round(statistics.median(shares), 5) if told and marked else None, held + max(peaks), held)


def _profiled(step: Callable[[], object]) -> tuple[float, int]:
    """(share of norms, bytes added at the peak) of one step. Its events, a gigabyte of a recurrence's, go with it."""
    with torch.profiler.profile(profile_memory=True) as profiler, torch.profiler.record_function(_STEP):
        step()
    events = profiler.profiler.kineto_results.events()
    return _norm_share(events), _peak(events)


def _fused(module: nn.Module) -> bool:
    """Whether a module is a recurrence of this project's with norms inside."""
    return isinstance(module, GRU | LSTM) and module.norm is not None


def _named(_: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.profiler.record_function(_NORM):
            return function(*args, **kwargs)

    return call


def _norm_share(events: Sequence[Any]) -> float:
    """Of the raw events: torch's own list of them costs seconds for a recurrence's step."""
    spans = [(e.start_ns(), e.start_ns() + e.duration_ns()) for e in events if e.name() == _NORM]
    outermost: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if not outermost or start >= outermost[-1][1]:
            outermost.append((start, end))
    starts = [start for start, _ in outermost]

    def within(moment: int) -> bool:
        place = bisect_right(starts, moment) - 1
        return place >= 0 and moment < outermost[place][1]

    made: dict[int, int] = {}  # the number of an autograd node -> when the operator began that made it
    backward: list[tuple[int, int]] = []
    for event in events:
        number = event.sequence_nr()
        if event.name().startswith("autograd::engine::evaluate_function"):
            backward.append((number, event.duration_ns()))
        elif number >= 0 and event.scope() == 0:  # 1: the node itself, running
            # An operator reports the number of the node to come: the last to report one is the one that made it.
            made[number] = max(made.get(number, 0), event.start_ns())
    forward = sum(end - start for start, end in outermost)
    of_norms = sum(duration for number, duration in backward if number in made and within(made[number]))
    whole = next(event.duration_ns() for event in events if event.name() == _STEP)
    return float((forward + of_norms) / whole)


def _peak(events: Sequence[Any]) -> int:
    """The peak of memory above the start, from the step's allocations and deallocations in order."""
    now = most = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def _bytes_held(learner: "Learner") -> int:
    """Parameters, buffers, gradients and the optimizer's state."""
    tensors = [*learner.model.parameters(), *learner.model.buffers()]
    tensors += [parameter.grad for parameter in learner.model.parameters() if parameter.grad is not None]
    for state in learner.optimizer.state.values():
        tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
