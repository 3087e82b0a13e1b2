"""One training step under torch.profiler: the time inside the normalisers, and the most memory tensors held.

Forward: the calls of the modules that normalise. Backward: the autograd nodes that those calls made, found by their
sequence numbers. The profiler's own cost makes such a step slower than a plain one: its share stands beside the one by
ablation (timing.share_beyond), which is of plain steps and cannot say where their time went.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rmsnorm.experiments.learner import Learner, Setup
from rmsnorm.experiments.task import Task

STEPS = 3
_NORM, _STEP = "rmsnorm: norm", "rmsnorm: step"


@dataclass(frozen=True)
class Profile:
    norm_share: float | None
    """Of a step, forward and backward; median over STEPS. None where nothing normalises, where a recurrence normalises
    within one kernel, and on other devices, whose time the calls do not tell."""
    peak_memory: int
    """Bytes of tensors at the fullest moment of a step: what is there before it, and what it adds."""


def steps(task: Task, setup: Setup, norm: str) -> Profile:
    """Profile the step that ``timing.measure`` times, after two unmeasured ones."""
    learner = Learner(task, setup, norm, task.recipe.timing.seed)
    batch, beta1 = task.batch(0, task.recipe.timing.seed), task.recipe.train.betas[0]
    network = learner.network()
    told = setup.device == "cpu" and not any(map(_fused, network.modules())) and _mark(network) > 0
    for _ in range(2):
        learner.step(batch, 0.0, beta1)
    before = _bytes_held(learner)
    shares, peaks = [], []
    for _ in range(STEPS):
        with torch.profiler.profile(profile_memory=True) as profiler, torch.profiler.record_function(_STEP):
            learner.step(batch, 0.0, beta1)
        shares.append(_norm_share(profiler))
        peaks.append(before + _peak(profiler))
    return Profile(round(statistics.median(shares), 5) if told else None, max(peaks))


def _mark(model: nn.Module) -> int:
    """Wrap what normalises so that the profiler names it; returns how many were found."""
    found = 0
    for module in model.modules():
        for name in ("forward", "normalise"):
            if name == "normalise" or normalises(module):
                function = getattr(module, name, None)
                if function is not None:
                    setattr(module, name, _named(function))
                    found += 1
    return found


def _fused(module: nn.Module) -> bool:
    """Whether a module is a recurrence of this project's with norms inside."""
    return type(module).__module__.startswith("rmsnorm.torch") and getattr(module, "norm", None) is not None


def normalises(module: nn.Module) -> bool:
    """Whether all that a module does is to normalise: by its name, as every framework calls them."""
    return type(module).__name__.endswith(("Norm", "Norm1d", "Norm2d", "DyT")) or isinstance(
        module, nn.utils.parametrize.ParametrizationList
    )


def _named(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.profiler.record_function(_NORM):
            return function(*args, **kwargs)

    return call


def _norm_share(profiler: Any) -> float:
    events = profiler.events()
    inside: set[int] = set()  # the ids of events within a norm's call
    makers: dict[int, Any] = {}  # sequence number -> the forward event that made the node
    forward = 0.0

    def walk(event: Any) -> None:
        inside.add(event.id)
        for child in event.cpu_children:
            walk(child)

    for event in events:
        if event.name == _NORM and not (event.cpu_parent and event.cpu_parent.name == _NORM):
            forward += event.time_range.elapsed_us()
            walk(event)
    backward = [event for event in events if event.name.startswith("autograd::engine::evaluate_function")]
    for event in events:
        # An operator reports the number of the node to come: the last to report one is the one that made it.
        if event.sequence_nr >= 0 and not event.name.startswith("autograd::") and event.scope == 0:
            last = makers.get(event.sequence_nr)
            if last is None or event.time_range.start >= last.time_range.start:
                makers[event.sequence_nr] = event
    of_norms = sum(
        event.time_range.elapsed_us()
        for event in backward
        if event.sequence_nr in makers and makers[event.sequence_nr].id in inside
    )
    whole = next(event for event in events if event.name == _STEP).time_range.elapsed_us()
    return float((forward + of_norms) / whole)


def _peak(profiler: Any) -> int:
    """The most that was allocated beyond the start, over the allocations and deallocations of the step in order."""
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def _bytes_held(learner: Learner) -> int:
    """Parameters, buffers, gradients and the optimizer's state."""
    tensors = [*learner.model.parameters(), *learner.model.buffers()]
    tensors += [parameter.grad for parameter in learner.model.parameters() if parameter.grad is not None]
    for state in learner.optimizer.state.values():
        tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
