"""What a model needs from a normaliser, and "no normaliser", which does nothing."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

VectorNorm = Callable[..., Tensor]
"""(x of shape (..., n), gain of shape (n,) or None) -> y of x's shape and dtype. A norm that is ``biased`` takes a bias
of shape (n,) as the third argument."""
PLACES = ("linear", "ih", "hh", "cell")
"""Where recurrent networks normalise: feed-forward layers, both sides of a recurrence, and the cell of an LSTM."""


class Normaliser:
    """How one network is normalised.

    A subclass says what it can do: ``make_layer`` for feed-forward networks, ``vector`` for recurrences and maps.
    Models call ``layer``, ``channels``, ``vector``, ``recurrence`` and ``parametrise``.

    Args:
        kernels: one of recipes.common.KERNELS; norms for which this project has no kernel use torch's own, except
            in "unfused".
        p: the recipe's, for pRMSNorm.
    """

    of_activations = True
    """False: nothing between the layers is normalised, and they keep their biases."""
    over_examples = False
    """True: the statistics are of the examples of a batch, so a recurrence takes ``step_norm``."""
    everywhere = False
    """True: the attentive reader takes a ``layer`` for each term of its attention and its read-out, too."""
    biased: tuple[str, ...] = ()
    """The PLACES in which the paper's code adds a bias after this norm's gain."""
    own_parameters = False
    """True: it is a module with its own parameters, so a recurrence takes a ``layer`` for each vector, and no gains."""

    def __init__(self, kernels: str, p: float) -> None:
        self.kernels, self.p = kernels, p

    def layer(self, width: int) -> nn.Module:
        """The module that normalises the last dimension, of ``width``; with its own gain and bias."""
        return self._marked(self.make_layer(width))

    def make_layer(self, width: int) -> nn.Module:
        raise NotImplementedError(f"{type(self).__name__} is no module over the last dimension")

    def channels(self, width: int, spatial: bool) -> nn.Module:
        """The module that normalises (N, C), or feature maps (N, C, Y, X) if ``spatial``; C is ``width``."""
        return self._marked(self.make_channels(width, spatial))

    def make_channels(self, width: int, spatial: bool) -> nn.Module:
        return ChannelNorm(width, self.vector())

    def vector(self) -> VectorNorm:
        """The norm of a vector as a function: the gain belongs to the caller, and one statistic may cover two gates.

        A module keeps it as ``normalise``, which is how the profiler finds it.
        """
        raise NotImplementedError(f"{type(self).__name__} is no function of one vector")

    def recurrence(self) -> dict[str, Any] | None:
        """The arguments with which rmsnorm.torch.GRU and LSTM do the same; None: a loop of operators does it."""
        return None

    def step_norm(self, width: int) -> nn.Module:
        """(x_BN, gain_N, indices of running examples or None, step, bias_N or None) -> (B, N), with statistics of each
        step."""
        raise NotImplementedError(f"{type(self).__name__} has no statistics over examples")

    def parametrise(self, module: nn.Module, name: str = "weight") -> None:
        """Replace a weight by its normalised form, in place. Called before the weight is drawn or after."""

    def _marked(self, module: nn.Module) -> nn.Module:
        return mark(module) if self.of_activations else module


def biased(normalise: VectorNorm, x: Tensor, gain: Tensor | None, bias: Tensor | None) -> Tensor:
    """``normalise`` with the bias where there is one."""
    return normalise(x, gain) if bias is None else normalise(x, gain, bias)


def outside_norms(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """``model.named_modules()`` without the norms and what is in them: a network does not draw their weights."""
    marked = (module for module in model.modules() if getattr(module, "normalises", False))
    inside = {part for module in marked for part in module.modules()}
    return ((name, module) for name, module in model.named_modules() if module not in inside)


@contextlib.contextmanager
def norms_wrapped(model: nn.Module, wrap: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> Iterator[int]:
    """Within it ``wrap(where it is, the function)`` is in place of every function of ``model`` that normalises; yields
    their number.

    They are the ``forward`` of marked modules, and what modules keep as ``normalise``. A module may have both: its
    forward then calls its ``normalise``.
    """
    before: list[tuple[nn.Module, str, Any]] = []
    for path, module in model.named_modules():
        for name in ("forward", "normalise"):
            if name == "normalise" or getattr(module, "normalises", False):
                function = getattr(module, name, None)
                if function is not None:
                    before.append((module, name, vars(module).get(name)))
                    setattr(module, name, wrap(path, function))
    try:
        yield len(before)
    finally:
        for module, name, own in before:
            if own is None:
                delattr(module, name)  # the class's shows again
            else:
                setattr(module, name, own)


def mark(module: nn.Module) -> nn.Module:
    """Mark a module that only normalises, so that :func:`norms_wrapped` finds it."""
    module.normalises = True  # type: ignore[assignment]
    return module


class NoNorm(Normaliser):
    """Nothing is normalised."""

    of_activations = False

    def make_layer(self, width: int) -> nn.Module:
        return nn.Identity()

    def make_channels(self, width: int, spatial: bool) -> nn.Module:
        return nn.Identity()

    def recurrence(self) -> dict[str, Any] | None:
        return None if self.kernels == "unfused" else {"norm": None}


class ChannelNorm(nn.Module):
    """Gain and bias for each channel; for feature maps (N, C, Y, X) the statistics of each channel and example over
    its Y·X positions in row-major order, for vectors (N, C) those of each example over its channels."""

    def __init__(self, channels: int, normalise: VectorNorm) -> None:
        super().__init__()
        self.normalise = normalise
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 2:
            return self.normalise(x, self.weight) + self.bias
        y_NCP = self.normalise(x.flatten(2), None)
        return torch.addcmul(self.bias[:, None], y_NCP, self.weight[:, None]).view_as(x)
