"""Settings that check themselves when they are made. What a field can be is in its annotation."""

import math
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin, get_type_hints

from rmsnorm_lab.errors import UserError, nearest

LARGEST = 2**31 - 1
"""No count in a recipe is larger. torch's own errors about sizes do not name the setting."""


@dataclass(frozen=True)
class Range:
    """The numbers that a setting can be."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    """``low`` itself is not one of them."""
    below: bool = False
    """``high`` itself is not one of them."""

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.above else self.low <= value) and (
            value < self.high if self.below else value <= self.high
        )

    def __str__(self) -> str:
        low = [f"{'above' if self.above else 'at least'} {self.low:g}"] if math.isfinite(self.low) else []
        high = [f"{'below' if self.below else 'at most'} {self.high:g}"] if math.isfinite(self.high) else []
        return " and ".join(low + high)


@dataclass(frozen=True)
class OneOf:
    """The words that a setting can be."""

    words: tuple[str, ...]


Index = Annotated[int, Range(0)]
"""A whole number from 0; a plain ``int`` is a count, from 1."""
Real = Annotated[float, Range()]
"""Any number; a plain ``float`` is not negative."""
Positive = Annotated[float, Range(0, above=True)]
Share = Annotated[float, Range(0, 1, below=True)]


class Settings:
    """A frozen dataclass of settings derives from this. Those who override ``__post_init__`` call this one first."""

    section: ClassVar[str] = ""
    """What precedes a field's name in --set and in messages: "train."."""

    def __post_init__(self) -> None:
        own: Any = type(self)
        for name, kind in _hints(own).items():
            for limit, value in _limits(kind, getattr(self, name)):
                _check(self.section + name, limit, value)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    found = get_type_hints(kind, include_extras=True)
    return {name: hint for name, hint in found.items() if get_origin(hint) is not ClassVar}


def _limits(kind: Any, value: Any) -> Iterator[tuple[Range | OneOf, Any]]:
    """Each number or word in a field's value, with what it can be."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        yield parts[1], value
    elif origin in (Union, types.UnionType):  # "float | None"
        if value is not None:
            yield from _limits(next(part for part in parts if part is not types.NoneType), value)
    elif origin is tuple and ... not in parts:
        for part, each in zip(parts, value, strict=True):
            yield from _limits(part, each)
    elif kind in (int, float):
        yield Range(1 if kind is int else 0), value


def _check(name: str, limit: Range | OneOf, value: Any) -> None:
    if isinstance(limit, OneOf):
        if value not in limit.words:
            suggested = nearest(value, limit.words) or " Pass one of these."
            raise UserError(f"{name} must be one of {', '.join(limit.words)}; got {value!r}.{suggested}")
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} must be finite; got {value:g}. Pass another number.")
    if value not in limit:
        raise UserError(f"{name} must be {limit}; got {value}. Pass another number.")
    if isinstance(value, int) and value > LARGEST:
        raise UserError(f"{name} must be at most {LARGEST}; got {value}. Pass a smaller number.")
