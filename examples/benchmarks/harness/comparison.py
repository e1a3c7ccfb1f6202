"""Cells of the smaller tables: rows are dicts with a seed and what `Score` has, one for each trained model."""

import statistics
from collections.abc import Sequence
from typing import Any

from .statistics import paired_difference, per_example

Rows = Sequence[dict[str, Any]]


def mean(values: Sequence[float], digits: int = 2) -> str:
    """With one standard deviation, where there are several.

    >>> mean([87.0, 88.0]), mean([0.5], digits=1)
    ('87.50 ± 0.71', '0.5')
    """
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def percent(rows: Rows) -> str:
    """Mean accuracy; empty without rows."""
    return mean([100 * row["score"] for row in rows]) if rows else ""


def against(rows: Rows, others: Rows) -> str:
    """Points of accuracy above the others, of the seeds that both have, with the paired bootstrap's 95 % interval."""
    errors = [{row["seed"]: 1 - per_example(row["examples"]) for row in side} for side in (others, rows)]
    difference = paired_difference(*errors)
    if difference is None:
        return ""
    return f"{100 * difference.mean:+.2f} [{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]"
