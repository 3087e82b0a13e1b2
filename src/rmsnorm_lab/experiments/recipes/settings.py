"""``--set train.learning_rate=0.001``: change single values of a recipe; each is read as its field's type."""

import textwrap
import types
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, get_args, get_type_hints

from rmsnorm_lab.errors import UserError, closest, meant
from rmsnorm_lab.experiments.recipes.common import Recipe

_IDLE = {
    "train.best_by": ("train.best", (False,)),
    "train.clip_norm": ("train.clip", ("none",)),
    "train.final_share": ("train.schedule", ("constant", "inverse_sqrt")),
}
"""Setting -> another one, and its values with which the first has no effect."""
_NOT_SINGLE = {"size", "learning_rates", "data"}


def changed(recipe: Recipe, assignments: Sequence[str], whose: str = "the recipe") -> Recipe:
    """``recipe`` with each "name=value" applied; a learning rate that is set holds for every normaliser.

    ``whose``: what messages call the recipe.
    """
    known = _settings(recipe)
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if name not in known:
            raise UserError(_unknown(name, known, whose))
        kind, present = known[name]
        if not equals or not text:
            raise UserError(f"--set must be NAME=VALUE; got {assignment!r}. An example: {name}={shown(present)}.")
        if name in values:
            flag = {"train.steps": "steps", "timing.rounds": "timing-rounds"}.get(name)
            flag = name.removeprefix("data.") if name in ("data.source", "data.target") else flag
            also = f" --{flag} N is --set {name}=N." if flag else ""
            raise UserError(f"{name} must be set once; got {shown(values[name])} and {text}. Pass one of them.{also}")
        values[name] = _value(name, text, kind, present)
    made = _replaced(recipe, values)
    if "train.learning_rate" in values:
        made = replace(made, learning_rates=())
    _check_together(made, values)
    return made


_ALIASES = {"lr": "learning_rate"}
"""Other programs' short names for settings, which :func:`nearest` would not match."""


def _settings(part: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Everything in a recipe that can be set: name -> (type, present value)."""
    found: dict[str, tuple[Any, Any]] = {}
    kinds = get_type_hints(type(part))
    for each in fields(part):
        value, name = getattr(part, each.name), prefix + each.name
        if is_dataclass(value):
            found |= _settings(value, f"{name}.")
        elif name not in _NOT_SINGLE:
            found[name] = kinds[each.name], value
    return found


def _replaced(part: Any, values: dict[str, Any]) -> Any:
    """``part`` with all of the values at once: a part's own checks see the whole of it."""
    own: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        head, dot, rest = name.partition(".")
        if dot:
            inner.setdefault(head, {})[rest] = value
        else:
            own[head] = value
    return replace(part, **own, **{head: _replaced(getattr(part, head), of_part) for head, of_part in inner.items()})


def _value(name: str, text: str, kind: Any, present: Any) -> Any:
    """``text`` as what the field takes, or an error that says what that is."""
    try:
        return _read(kind, text)
    except (ValueError, KeyError):
        raise UserError(
            f"{name} must be {_in_words(kind)}; got {text!r}. "
            f"An example is the recipe's value: {name}={shown(present)}."
        ) from None


def _read(kind: Any, text: str) -> Any:
    """``text`` as a value of a field's type; ValueError or KeyError where it is none."""
    parts = get_args(kind)
    if types.NoneType in parts:  # "float | None"
        (other,) = set(parts) - {types.NoneType}
        return None if text.lower() in ("null", "none") else _read(other, text)
    if parts:  # a tuple: (0.9, 0.99), [0.9, 0.99] and 0.9,0.99 are the same
        words = text.strip().removeprefix("(").removeprefix("[").removesuffix(")").removesuffix("]").split(",")
        return tuple(_read(part, word) for part, word in zip(parts, words, strict=True))
    if kind is bool:
        return {"true": True, "false": False}[text.lower()]
    return kind(text)


def _in_words(kind: Any) -> str:
    parts = get_args(kind)
    if types.NoneType in parts:
        (other,) = set(parts) - {types.NoneType}
        return f"{_in_words(other)} or null"
    if parts:
        return f"{len(parts)} {'whole ' if parts[0] is int else ''}numbers"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}[kind]


def _check_together(recipe: Recipe, values: dict[str, Any]) -> None:
    """Refuse settings that contradict each other. (Each part checks its own values.)"""
    train = recipe.train
    # If the recipe's own warm-up is longer than a shortened run, the heading says so.
    if train.warmup_steps > train.steps and "train.warmup_steps" in values:
        raise UserError(
            f"train.warmup_steps must be at most the run's {train.steps} steps; got {train.warmup_steps}. "
            "Pass a shorter warm-up or more steps."
        )
    now = _settings(recipe)
    for name, (other, without_effect) in _IDLE.items():
        if name in values and now[other][1] in without_effect:
            raise UserError(
                f"{name} has no effect where {other} is {now[other][1]}; got {name}={shown(values[name])}. "
                f"Set {other} too, or leave {name} out."
            )


def _unknown(name: str, known: dict[str, tuple[Any, Any]], whose: str) -> str:
    must = f"--set must name a setting of {whose}; got {name!r}."
    section, _, last = name.lower().rpartition(".")
    # Of settings with the same name the last one counts: that of the named section.
    ordered = sorted(known, key=lambda each: each.rpartition(".")[0] == section)
    of_part = {each.rpartition(".")[2]: each for each in ordered}
    if found := closest(_ALIASES.get(last, last), of_part):
        return must + meant(of_part[found])
    sections: dict[str, list[str]] = {}
    for each, (_, present) in known.items():
        sections.setdefault(each.rpartition(".")[0], []).append(f"{each}={shown(present)}")
    lines = "\n".join(
        textwrap.fill(" ".join(settings), 100, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
        for settings in sections.values()
    )
    return f"{must} These are all, with their values:\n{lines}"


def shown(value: Any) -> str:
    """A value as ``--set`` takes it."""
    if value is None:
        return "null"
    if isinstance(value, tuple):
        return ",".join(map(shown, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
