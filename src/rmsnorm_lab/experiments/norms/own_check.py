"""What a norm of the user's own must show before a network is built on it: that it can be used as the networks do."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from rmsnorm_lab.errors import UserError


def checked(source: str, module: nn.Module, width: int) -> nn.Module:
    """The module, as it was, after it has kept shape, dtype and input in both modes, and passed a gradient on.

    Raises:
        UserError: it has not. The message names ``source``.
    """
    if any(is_lazy(each) for each in itertools.chain(module.parameters(), module.buffers())):
        raise UserError(
            f"{source} must have its parameters once it is made for a width, here {width}; it has lazy ones. "
            "Give their modules the width."
        )
    training, before = module.training, _state(source, module)  # it may keep statistics in training
    for mode, x in itertools.product(("evaluation", "training"), _inputs(width)):
        _keeps_shape(source, module.train(mode == "training"), x, f"of {_shape(x)}, in {mode}")
    for x in _inputs(width):
        _passes_a_gradient(source, module.train(), x)
    _restore(source, module, before)
    return module.train(training)


def _inputs(width: int) -> tuple[Tensor, ...]:
    """In ``images`` the width is moved to the end, which leaves the elements of a row apart in memory."""
    return torch.randn(3, width), torch.randn(2, 3, width), torch.randn(2, width, 3, 2).movedim(1, -1)


def _shape(x: Tensor) -> str:
    return f"float32 {tuple(x.shape)}{'' if x.is_contiguous() else ', not contiguous'}"


def _keeps_shape(source: str, module: nn.Module, x: Tensor, asked: str) -> None:
    must = f"{source} must turn a tensor of shape (..., width) into one of the same shape and dtype"
    before = x.clone()
    with torch.no_grad():
        y = _called(f"{must}; {asked}", lambda: module(x))
    if not torch.equal(x, before):
        raise UserError(f"{must}, and leave that tensor as it is; {asked}, it wrote into it.")
    if not isinstance(y, Tensor):
        raise UserError(f"{must}; {asked}, it made {type(y).__name__}.")
    if y.shape != x.shape or y.dtype != x.dtype:
        dtype = str(y.dtype).removeprefix("torch.")
        raise UserError(f"{must}; {asked}, it made {dtype} {tuple(y.shape)}.")


def _passes_a_gradient(source: str, module: nn.Module, x: Tensor) -> None:
    must = f"{source} must pass the gradient of its output on to its input"
    asked = f"{must}; in training, of {_shape(x)}"
    with torch.enable_grad():  # the analyses build their layers without
        x.requires_grad_()
        y = _called(asked, lambda: module(x))
        if y.requires_grad:
            wanted = [x, *(each for each in module.parameters() if each.requires_grad)]
            gradients = _called(asked, lambda: torch.autograd.grad(y, wanted, torch.randn_like(y), allow_unused=True))
            if gradients[0] is not None:
                return
    raise UserError(f"{must}; none arrives there. Leave out what cuts it, such as detach() and torch.no_grad().")


def _state(source: str, module: nn.Module) -> dict[str, Any]:
    must = f"{source} must have a state that can be copied, for the checkpoints; from it"
    found: dict[str, Any] = _called(must, lambda: copy.deepcopy(module.state_dict()))
    return found


def _restore(source: str, module: nn.Module, before: dict[str, Any]) -> None:
    must = f"{source} must load the state that it had before its first input, as from a checkpoint; loading it"
    _called(must, lambda: module.load_state_dict(before))


def _called(must: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (Exception, SystemExit) as error:
        raise UserError(f"{must}, it raised {type(error).__name__}: {' '.join(str(error).split())}") from error
