"""Paired bootstrap over the validation examples: how far a difference between two methods can be chance.

Efron & Tibshirani 1993; both methods are scored on the same examples, so what is resampled is the difference of each
example, averaged over the seeds that both methods have.
"""

from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
CHUNK = 500  # resamples at a time, to bound the memory
LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """Mean difference and its 95 % interval, over `seeds` seeds; positive: the first is worse."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def separable(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def for_choices(examples: str | list[float]) -> str | list[float]:
    """The part of the validation examples that choices are made by: the first, the third, …

    >>> for_choices("01101"), held_out("01101")
    ('011', '10')
    """
    return examples[0::2]


def held_out(examples: str | list[float]) -> str | list[float]:
    """The other part, by which nothing is chosen; no score of it is shown before a model is finished."""
    return examples[1::2]


def per_example(examples: str | list[float]) -> np.ndarray:
    """`"011"` or a list of numbers, as `(examples,)`."""
    return np.array([float(value) for value in examples])


def paired_difference(first: dict[int, np.ndarray], second: dict[int, np.ndarray]) -> Difference | None:
    """Of two methods' losses by seed, each `(examples,)`; None when they share no seed."""
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    differences = np.mean([first[seed] - second[seed] for seed in seeds], axis=0)
    generator = np.random.default_rng(0)
    means = np.concatenate(
        [
            differences[generator.integers(len(differences), size=(CHUNK, len(differences)))].mean(axis=1)
            for _ in range(RESAMPLES // CHUNK)
        ]
    )
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(mean=float(differences.mean()), low=float(low), high=float(high), seeds=len(seeds))
