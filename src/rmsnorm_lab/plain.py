"""Frozen dataclasses as JSON values and back: what is read is checked field by field against the declared types."""

import types
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Made = TypeVar("Made")

ADDED = {"added": True}
"""Metadata of a field that older files lack: it is not written at its default."""
WRITTEN = {"added": True, "written": True}
"""Metadata of a field that older files lack, and that is always written."""


def to_plain(value: Any) -> Any:
    """``value`` in dicts, lists, strings, numbers, booleans and None."""
    if is_dataclass(value):
        return {each.name: to_plain(getattr(value, each.name)) for each in fields(value) if not _left_out(value, each)}
    if isinstance(value, dict):
        return {name: to_plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(each) for each in value]
    return value


def _left_out(value: Any, each: "Field[Any]") -> bool:
    optional = each.metadata.get("added") and not each.metadata.get("written")
    return bool(optional and getattr(value, each.name) == each.default)


def from_plain(kind: type[Made], value: Any) -> Made:
    """The dataclass ``kind`` that :func:`to_plain` turned into ``value``.

    Raises:
        ValueError: a field is missing, unknown, or of another type; the message names it.
    """
    made: Made = _made(kind, value, "")
    return made


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _made(kind: Any, value: Any, where: str) -> Any:
    if is_dataclass(kind):
        return _dataclass(kind, value, where)
    if kind is Any:
        return value
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (types.UnionType, Union):  # "float | None"
        (other,) = set(parts) - {types.NoneType}
        return None if value is None else _made(other, value, where)
    if origin is dict:
        return {name: _made(parts[1], each, f"{where}.{name}") for name, each in _of(dict, value, where).items()}
    if origin is list:
        return [_made(parts[0], each, where) for each in _of(list, value, where)]
    if origin is tuple:
        several = _of(list, value, where)
        kinds = parts[:1] * len(several) if parts[-1] is ... else parts
        if len(kinds) != len(several):
            raise ValueError(f"{where[1:]} must have {len(kinds)} values; got {len(several)}")
        return tuple(_made(part, each, where) for part, each in zip(kinds, several, strict=True))
    return _of(int | float if kind is float else kind, value, where)


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    given = _of(dict, value, where)
    known = {each.name: each for each in fields(kind)}
    if unknown := sorted(given.keys() - known.keys()):
        raise ValueError(f"{where[1:] or kind.__name__} has the unknown field {unknown[0]!r}")
    for name, each in known.items():
        if name not in given and not (each.metadata.get("added") and each.default is not MISSING):
            raise ValueError(f"{where[1:] or kind.__name__} lacks the field {name!r}")
    return kind(**{name: _made(_hints(kind)[name], each, f"{where}.{name}") for name, each in given.items()})


def _of(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where[1:]} must be {getattr(kind, '__name__', kind)}; got {value!r}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:  # others fit no float either
        raise ValueError(f"{where[1:]} must be a number of at most 64 bits; got one of {value.bit_length()}")
    return value
