"""Frozen dataclasses from JSON, every value checked by its annotation, since files may be damaged or hostile."""

import dataclasses
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ..errors import CheckpointError, invalid

LARGEST = 2**31 - 1
LATER = {"later": True}  # metadata of a field that earlier releases did not write; its default says what they meant
REMEDY = "The file is damaged or was not written by optimum-dendritic; save the model again."
T = TypeVar("T")


def read(kind: type[T], value: object, where: str) -> T:
    """`value` as a `kind`: a dataclass with exactly its fields (those marked `LATER` may be absent), `bool`, `int` in
    [0, 2^31), `str`, `tuple[X, ...]` or `dict[str, X]` of these.

    Raises:
        CheckpointError: `value` is anything else; `where` names the place.
    """
    reader: Any = _READERS.get(get_origin(kind) or kind, _dataclass)
    return reader(kind, value, where)


def bad(where: str, value: object, rule: str) -> CheckpointError:
    """The error for a value that this package would not have written."""
    error = invalid(where, value, rule, REMEDY, CheckpointError)
    assert isinstance(error, CheckpointError)
    return error


def only(fields: object, names: set[str], where: str) -> dict[str, Any]:
    """`fields` if it is a JSON object with exactly the fields `names`."""
    if not isinstance(fields, dict) or set(fields) != names:
        raise bad(where, fields, f"must be a JSON object with exactly the fields {', '.join(sorted(names))}")
    return fields


def _dataclass(kind: type, value: object, where: str) -> object:
    hints = get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}
    later = {field.name: field.default for field in dataclasses.fields(kind) if field.metadata == LATER}
    fields = only({**later, **value} if isinstance(value, dict) else value, names, where)
    return kind(**{name: read(hints[name], fields[name], f"{where}.{name}") for name in names})


def _boolean(kind: type, value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise bad(where, value, "must be true or false")
    return value


def _count(kind: type, value: object, where: str) -> int:
    if type(value) is not int or not 0 <= value <= LARGEST:
        raise bad(where, value, f"must be an integer in [0, {LARGEST}]")
    return value


def _text(kind: type, value: object, where: str) -> str:
    if not isinstance(value, str):
        raise bad(where, value, "must be a string")
    return value


def _array(kind: type, value: object, where: str) -> tuple[object, ...]:
    if not isinstance(value, list | tuple):
        raise bad(where, value, "must be a JSON array")
    return tuple(read(get_args(kind)[0], item, f"{where}[{index}]") for index, item in enumerate(value))


def _object(kind: type, value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise bad(where, value, "must be a JSON object")
    return {key: read(get_args(kind)[1], item, f"{where}.{key}") for key, item in value.items()}


_READERS = {bool: _boolean, int: _count, str: _text, tuple: _array, dict: _object}
