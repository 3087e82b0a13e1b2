"""``--set train.learning_rate=0.001``: a recipe with single values changed, each checked against what it replaces."""

import json
import math
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from rmsnorm.errors import UserError
from rmsnorm.experiments.recipes.common import CLIPS, OPTIMIZERS, SCHEDULES, Recipe

_CHOICES = {"train.optimizer": OPTIMIZERS, "train.schedule": SCHEDULES, "train.clip": CLIPS}
# The smallest values that make sense: 1 for whole numbers and 0 for others, but for these.
_LEAST = {
    "train.warmup_steps": 0,
    "timing.rounds": 0,
    "timing.warmup_rounds": 0,
    "timing.seed": 0,
    "data.held_out": 0,
    "model.init_mean": -math.inf,
}
_BELOW_ONE = {"model.dropout", "model.label_smoothing", "train.betas", "train.late_beta1"}
_NOT_SINGLE = {"size", "learning_rates", "data"}


def changed(recipe: Recipe, assignments: Sequence[str]) -> Recipe:
    """``recipe`` with each "name=value" applied; a learning rate that is set holds for every normaliser."""
    known = names(recipe)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or name not in known:
            raise UserError(
                f"--set must be NAME=VALUE with a name of {', '.join(known)}; got {assignment!r}. Pass one of these."
            )
        recipe = _set(recipe, name.split("."), name, text)
        if name == "train.learning_rate":
            recipe = replace(recipe, learning_rates=())
    return recipe


def names(part: Any, prefix: str = "") -> list[str]:
    """Everything in a recipe that can be set."""
    found: list[str] = []
    for each in fields(part):
        value, name = getattr(part, each.name), prefix + each.name
        if is_dataclass(value):
            found += names(value, f"{name}.")
        elif name not in _NOT_SINGLE:
            found.append(name)
    return found


def _set(part: Any, path: list[str], name: str, text: str) -> Any:
    head, *rest = path
    present = getattr(part, head)
    return replace(part, **{head: _set(present, rest, name, text) if rest else _sound(name, text, present)})


def _sound(name: str, text: str, present: Any) -> Any:
    """:func:`_value`, if the training can have it."""
    value = _value(name, text, present)
    for each in value if isinstance(value, tuple) else (value,):
        if isinstance(each, int | float) and not isinstance(each, bool):
            _check(name, each)
    return value


def _check(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise UserError(f"{name} must be finite; got {value:g}. Pass another number.")
    least = _LEAST.get(name, 1 if isinstance(value, int) else 0)
    if value < least:
        raise UserError(f"{name} must be at least {least}; got {value:g}. Set it to {least} or more.")
    if name in _BELOW_ONE and value >= 1:
        raise UserError(f"{name} must be below 1; got {value:g}. Set it to a smaller number.")
    if name == "p" and not 0 < value <= 1:
        raise UserError(f"p must be above 0 and at most 1; got {value:g}. It is the share of elements in the RMS.")


def _value(name: str, text: str, present: Any) -> Any:
    """``text`` as the type of ``present`` (None: a number or null)."""
    if name in _CHOICES and text not in _CHOICES[name]:
        raise UserError(f"{name} must be one of {', '.join(_CHOICES[name])}; got {text!r}. Pass one of these.")
    if isinstance(present, str):
        return text
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if isinstance(present, tuple) and isinstance(value, list) and len(value) == len(present):
        if all(isinstance(new, type(old)) for new, old in zip(value, present, strict=True)):
            return tuple(value)
    elif isinstance(present, float | None) and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif present is None and value is None:
        return None
    elif type(value) is type(present):
        return value
    kind = "number" if present is None else type(present).__name__
    raise UserError(f"{name} must be a {kind}, as {present!r} is; got {text!r}. Pass --set {name}=VALUE in that form.")
