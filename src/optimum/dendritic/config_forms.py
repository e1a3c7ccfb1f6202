"""Configs that make several models of different shapes of one: sizes of it, and one that has something dormant."""

from collections.abc import Collection, Mapping
from typing import Any

from .config_checks import check_number
from .errors import invalid


def divided_sizes(sparsity: Any, sizes: Any) -> tuple[Any, tuple[Any, ...]]:
    """The sparsity of the largest model, and those of the smaller ones, where `sparsity` may name all of them.

    >>> divided_sizes((0.8, 0.5), ()), divided_sizes(0.5, [0.8]), divided_sizes(None, ())
    ((0.5, (0.8,)), (0.5, (0.8,)), (None, ()))

    Raises:
        DendriticError: sizes are named twice, or are not a list, or a sparsity is not a fraction.
    """
    if not isinstance(sizes, list | tuple):
        raise invalid("sizes", sizes, "must be a list of fractions", "Pass e.g. [0.8, 0.9].")
    if not isinstance(sparsity, list | tuple):
        return sparsity, tuple(sizes)
    if sizes or not sparsity:
        rule = "is one fraction where sizes are given" if sizes else "must have a fraction"
        raise invalid("sparsity", sparsity, rule, "Pass sparsity=(0.5, 0.8), or sparsity=0.5.")
    for fraction in sparsity:
        check_number("sparsity", fraction, 0, 1, below=True)
    first, *others = sorted(sparsity)
    return first, tuple(others)


def check_sizes(sizes: Collection[Any], sparsity: float | None) -> None:
    """Refuse sizes that do not ascend from the sparsity of the largest model."""
    before = sparsity
    for size in sizes:
        check_number("sizes", size, 0, 1, below=True)
        if before is None or size <= before:
            remedy = "Give a sparsity, and each size once."
            raise invalid("sizes", sizes, f"must ascend from sparsity = {sparsity}", remedy)
        before = size


def check_dormant(dormant: Any, sparsity: float | None) -> None:
    """Refuse what is not milder than the sparsity of the core."""
    check_number("dormant", dormant, 0, 1, below=True)
    if sparsity is None or dormant >= sparsity:
        remedy = "Lower it: it is what is removed while everything that is packed apart is awake."
        raise invalid("dormant", dormant, f"must be below sparsity = {sparsity}", remedy)


def refuse_two_forms(several: str, fields: Mapping[str, Any]) -> None:
    """Refuse the fields among these that are set, beside the field `several`."""
    for field, value in fields.items():
        if value:
            rule = f"its model has one form, and {several} makes several of different shapes"
            raise invalid(field, value, rule, f"Leave {field} or {several} out.")
