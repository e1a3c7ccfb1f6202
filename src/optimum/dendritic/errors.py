"""Errors that name the field, its value, the rule and the remedy; every module raises them through `invalid`."""

from collections.abc import Collection
from difflib import get_close_matches

LONGEST = 300  # characters of a value or a name in a message


class DendriticError(ValueError):
    """Bad input, refused before anything was changed."""


class CheckpointError(DendriticError):
    """A checkpoint whose layout or tensors break a rule; nothing of it was run."""


class PushError(DendriticError):
    """A push that the Hub refused or that did not get through; says what is there now and what to do."""


def invalid(
    field: str, value: object, rule: str, remedy: str, error: type[DendriticError] = DendriticError
) -> DendriticError:
    """Build (not raise) the one error form of this package, so that `raise invalid(...)` reads as a sentence.

    What a file or a user wrote, the field's name and its value, is cut at `LONGEST` characters.
    """
    return error(f"{_cut(field)} = {_cut(repr(value))}: {rule}. {remedy}")


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


def near(name: object, known: Collection[str]) -> str:
    """The known names that are spelt like `name`, as a question with a space after it; empty if none is.

    >>> near("sparcity", ["sparsity", "budget"]), near("colour", ["sparsity", "budget"])
    ('Did you mean sparsity? ', '')
    """
    alike = get_close_matches(str(name), known, cutoff=0.7)
    return f"Did you mean {' or '.join(alike)}? " if alike else ""
