"""Sparsity schedules: closures from training progress to the fraction removed.

Progress runs from 0 (training starts) to 1 (training ends). Every schedule is 0 up to `start`, climbs to `final` at
`end` and stays there: what follows `end` is recovery with a frozen mask.
"""

from collections.abc import Callable
from math import cos, pi

Schedule = Callable[[float], float]

WARMUP, PRUNING, RECOVERY = 0, 1, 2  # phases are logged as numbers, since reporters plot nothing else
PHASES = ("warm-up", "pruning", "recovery")


def cubic(final: float, start: float, end: float) -> Schedule:
    """`s(p) = final * (1 - (1 - p)^3)`: fast while much is redundant, slow near the end (Zhu & Gupta 2017, eq. 1).

    >>> sparsity = cubic(0.6, start=0.0, end=0.5)
    >>> [round(sparsity(p), 4) for p in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 0.525, 0.6, 0.6]
    """
    return lambda progress: final * (1 - (1 - _ramp(progress, start, end)) ** 3)


def linear(final: float, start: float, end: float) -> Schedule:
    """`s(p) = final * p`.

    >>> sparsity = linear(0.6, start=0.0, end=0.5)
    >>> [round(sparsity(p), 4) for p in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 0.3, 0.6, 0.6]
    """
    return lambda progress: final * _ramp(progress, start, end)


def cosine_decay(initial: float, start: float, end: float) -> Schedule:
    """From `initial` at `start` to 0 at `end`, half a cosine: the regrown fraction (Evci et al. 2020, RigL, eq. 1).

    >>> regrow = cosine_decay(0.1, start=0.0, end=1.0)
    >>> [round(regrow(p), 4) for p in (0.0, 0.5, 1.0)]
    [0.1, 0.05, 0.0]
    """
    return lambda progress: initial * (1 + cos(pi * _ramp(progress, start, end))) / 2


def update_steps(max_steps: int, start: float, end: float, updates: int) -> tuple[int, ...]:
    """The optimizer steps (1-based, ascending, distinct) at which the mask is chosen anew; the last one freezes it.

    >>> update_steps(100, start=0.05, end=0.6, updates=5)
    (16, 27, 38, 49, 60)
    >>> update_steps(8, start=0.0, end=0.5, updates=50)
    (1, 2, 3, 4)
    """
    first, last = int(start * max_steps), int(end * max_steps)
    return tuple(sorted({first + -(-(last - first) * i // updates) for i in range(1, updates + 1)} - {0, first}))


SCHEDULES: dict[str, Callable[[float, float, float], Schedule]] = {"cubic": cubic, "linear": linear}


def _ramp(progress: float, start: float, end: float) -> float:
    """Position of `progress` between `start` (0) and `end` (1), clipped."""
    return min(1.0, max(0.0, (progress - start) / (end - start)))
