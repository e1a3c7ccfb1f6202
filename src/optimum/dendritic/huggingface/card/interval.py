"""How far a share of few samples may be from that of all."""

from math import sqrt

PROPORTIONS = ("accuracy", "exact_match")  # metrics that are a share of the samples
FEW = 10_000  # samples, below which an interval is told
NORMAL = 1.96  # standard deviations on either side that hold 95 %


def interval(share: float, samples: int) -> tuple[float, float]:
    """The 95 % interval of a share of `samples` independent samples (Wilson 1927), which stays within 0 and 1.

    >>> [round(end, 3) for end in interval(0.875, 872)], [round(end, 3) for end in interval(1.0, 10)]
    ([0.851, 0.895], [0.722, 1.0])
    """
    square = NORMAL**2 / samples
    middle = (share + square / 2) / (1 + square)
    half = NORMAL * sqrt(share * (1 - share) / samples + square / (4 * samples)) / (1 + square)
    return middle - half, middle + half


def interval_of(metric: str, value: float, samples: int | None) -> tuple[float, float] | None:
    """The interval of a score; None for a metric that is not a share, and where the samples are many or not counted."""
    told = metric in PROPORTIONS and samples is not None and 0 < samples < FEW and 0 <= value <= 1
    return interval(value, samples) if told and samples is not None else None
