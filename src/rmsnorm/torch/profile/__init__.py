"""What the norms of a model cost in a step of it, and what faster ones would save: :func:`profile_norms`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from rmsnorm.torch.accelerate import as_before
from rmsnorm.torch.profile.kept import Kept
from rmsnorm.torch.profile.profiler import Profiler, Progress, Step
from rmsnorm.torch.profile.report import NormCost, NormProfile

__all__ = ["NormCost", "NormProfile", "profile_norms"]

ROOM_TO_COMPILE = 200  # graphs
_SHARDED = "FSDPModule", "FullyShardedDataParallel"


def profile_norms(
    model: nn.Module,
    step: Step,
    *,
    seconds: float = 20.0,
    rounds: int | None = None,
    progress: Progress | None = None,
) -> NormProfile:
    r"""What the norms of ``model`` cost in a step of it, and what :func:`swap_norms` and :func:`accelerate` would save.

    .. math:: \text{share} = 1 - \operatorname{median}_r \frac{t_r(\text{without})}{t_r(\text{model})}

    The step is timed as it is, with the norms swapped, with torch's own accelerated where it calls ``F.rms_norm``, with
    all norms left out, and with each distinct norm left out, in rounds that take each of these once in a random order.
    Shares are medians over the rounds r, with 95 % confidence intervals. No norm is timed alone: in warm caches it
    seems three to five times cheaper than in a model.

    A norm that is left out returns its input (one with a gate, input · gate). That changes the numbers, so only the
    times mean anything. It is not possible for a step whose work depends on the numbers (a generation that stops at a
    token): then ``notes`` say so. The shares of distinct norms need not add up to that of all.

    Nothing of the model is changed afterwards, also after an error or an interruption: parameters, buffers, gradients,
    attributes (with what lists, dicts, sets, deques and arrays hold, not other objects), modes, hooks and classes are
    put back; so are optimizers that step, and the random states of torch, NumPy and Python. Each step starts from the
    same numbers. What else the step changes (a data loader's place, a learning rate's schedule, files) it changes some
    hundred times. The copy takes the memory of the model once more, and that of the optimizers' states.

    Args:
        model: any module on a CPU.
        step: is called with the model and does what is to be timed: ``lambda model: model(x)``, a decoding step, a
            training step with its optimizer. Its result is not used.
        seconds: how long to measure; at least 7 rounds are taken, however long they last.
        rounds: the number of rounds, instead of ``seconds``. Fewer than 6 have no interval.
        progress: is called with what is being done, and how many seconds are left (None: not known yet).

    dtypes: those of the model. Threads: ``torch.get_num_threads()``.

    Returns:
        an object with ``norms`` (a row for each distinct norm), ``cost``, ``swap``, ``accelerate`` (shares of the
        step), ``step_ms``, ``notes`` and ``times_ns``; a table when printed.

    Raises:
        TypeError: an argument is of another type.
        ValueError: no norm of the model is called in a step; a parameter has no shape yet; ``seconds`` or ``rounds`` is
            not positive.
        NotImplementedError: the model is not on a CPU, or FSDP has sharded it.

    Source: Zhang & Sennrich, "Root Mean Square Layer Normalization" (2019), whose Tables compare times of whole steps.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.RMSNorm(8))
        >>> x = torch.randn(4, 8)
        >>> profile = profile_norms(model, lambda model: model(x), rounds=2)
        >>> [(row.cls, row.n, row.rows, row.calls) for row in profile.norms]
        [('RMSNorm', 8, (4,), 1)]
    """
    _check(model, step, seconds, rounds, progress)
    tell = progress or (lambda what, left: None)
    kept = Kept(model)
    try:
        with as_before(), _room_to_compile():
            return Profiler(model, step, kept, tell).profile(seconds, rounds)
    finally:
        kept.restore()


def _check(model: nn.Module, step: Step, seconds: float, rounds: int | None, progress: Progress | None) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not callable(step):
        raise TypeError(f"step must be callable with the model, got {type(step).__name__}")
    if progress is not None and not callable(progress):
        raise TypeError(f"progress must be callable or None, got {type(progress).__name__}")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"seconds must be a number, got {type(seconds).__name__}")
    if rounds is not None and (isinstance(rounds, bool) or not isinstance(rounds, int)):
        raise TypeError(f"rounds must be an int or None, got {type(rounds).__name__}")
    if not 0 < seconds < float("inf"):
        raise ValueError(f"seconds must be positive and finite, got {seconds}")
    if rounds is not None and rounds < 1:
        raise ValueError(f"rounds must be positive, got {rounds}")
    fsdp = sys.modules.get("torch.distributed.fsdp")
    sharded = tuple(kind for name in _SHARDED if (kind := getattr(fsdp, name, None)))
    if any(isinstance(module, sharded) for module in model.modules()):
        raise NotImplementedError(
            "profile_norms puts a model's parameters back after each step, and FSDP exchanges them on its own account; "
            "profile the model before it is sharded"
        )
    tensors = [*model.named_parameters(), *model.named_buffers()]
    if lazy := [name for name, t in tensors if nn.parameter.is_lazy(t)]:
        raise ValueError(f"every parameter must have a shape, and {lazy[0]} has none yet; run the model once before")
    if elsewhere := [(name, t.device) for name, t in tensors if t.device.type != "cpu"]:
        name, device = elsewhere[0]
        raise NotImplementedError(f"profile_norms times models on a CPU, and {name} is on {device}; move the model")


@contextmanager
def _room_to_compile() -> Iterator[None]:
    """A compiled step is compiled for each variant. At Dynamo's limit of 8 graphs it would silently run uncompiled."""
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None:  # nothing is compiled yet
        yield
        return
    name = "recompile_limit" if hasattr(dynamo.config, "recompile_limit") else "cache_size_limit"  # torch < 2.6
    with dynamo.config.patch({name: getattr(dynamo.config, name) + ROOM_TO_COMPILE}):
        yield
