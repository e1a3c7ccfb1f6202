"""What every field of a config is checked by, whatever it means: its type, its range, its choices, its name."""

import functools
import re
from typing import Any, TypeVar

from .errors import invalid, near

LONGEST_PATTERN = 5000  # characters of a regular expression
T = TypeVar("T")


def refuse_unknown_fields(kind: type[T]) -> type[T]:
    """Make an unknown keyword of the constructor a `DendriticError` that names the fields spelt alike."""
    construct = kind.__init__

    @functools.wraps(construct)
    def __init__(self: T, *args: Any, **fields: Any) -> None:
        known = list(kind.__annotations__)
        for name in fields.keys() - known:
            remedy = f"{near(name, known)}The fields are {', '.join(known)}."
            raise invalid(name, fields[name], f"is not a field of {kind.__name__}", remedy)
        construct(self, *args, **fields)

    kind.__init__ = __init__
    return kind


def excerpt(text: object) -> object:
    """The beginning of what is not JSON."""
    return f"{text[:100]}…" if isinstance(text, str) and len(text) > 100 else text


def patterns(field: str, value: Any) -> str | tuple[str, ...] | None:
    """A regular expression, or names in their order (sets sorted); None for neither. Anything else is refused."""
    if value is None:
        return None
    if isinstance(value, str):
        if len(value) > LONGEST_PATTERN:
            rule = f"has {len(value)} characters, more than {LONGEST_PATTERN}"
            raise invalid(field, value, rule, "Pass a list of names.")
        try:
            re.compile(value)
        except (re.error, OverflowError, RecursionError) as error:
            rule = f"is not a regular expression ({error})"
            raise invalid(field, value, rule, "Correct it, or pass a list of names.") from None
        return value
    if isinstance(value, list | tuple | set) and value and all(isinstance(item, str) and item for item in value):
        return tuple(sorted(value) if isinstance(value, set) else value)
    raise invalid(
        field, value, "must be None, a regular expression or a list of module names", 'Pass e.g. ["query", "key"].'
    )


def check_number(field: str, value: Any, low: float, high: float, below: bool = False) -> None:
    """Refuse what is not a number in `[low, high]`, or `[low, high)` if it has to be `below`."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (low <= value < high or (value == high and not below)):
        raise invalid(
            field, value, f"must be a number in [{low}, {high}{')' if below else ']'}", "Choose one in that range."
        )


def check_integer(field: str, value: Any, at_least: int) -> None:
    """Refuse what is not an integer of that size; a bool is not."""
    if type(value) is not int or value < at_least:
        raise invalid(field, value, f"must be an integer of at least {at_least}", "Choose one in that range.")


def check_choice(field: str, value: Any, choices: tuple[str, ...]) -> None:
    """Refuse what is not one of the choices, with those that are spelt alike."""
    if not isinstance(value, str) or value not in choices:
        raise invalid(
            field, value, f"must be one of {', '.join(choices)}", f"{near(value, choices)}Choose one of them."
        )
