"""The rows of a result table, from the records of its runs. Reads and writes no file."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from .metric import Metric
from .runs import DENSE, METHODS
from .statistics import Difference, for_choices, held_out, paired_difference, per_example

Examples = str | list[float]
Part = Callable[[Examples], Examples]


@dataclass(frozen=True)
class Row:
    """One method at one level, over its seeds. What is measured is a share of dense, or None.

    Attributes:
        scores: The score of each seed, in the unit of the card.
        against_dense: The loss against the better dense models of the same seeds; None for these themselves.
        held_out: The mean score on the part of the examples that nothing was chosen by.
        held_out_against_dense: The loss on that part.
        parameters: The parameters of the saved model, in the mean over the seeds.
        macs: The multiply-accumulates of the saved model, in the mean over the seeds.
        removed: The share of the dense model's parameters that is gone.
        target_removed: The share of the parameters of its target modules that is gone.
        macs_removed: The share of its multiply-accumulates that is gone.
        target_macs_removed: The share of those of its target modules that is gone.
        layers: The share of each target module's parameters that is left, by its name.
        ratios: The shares of the dense model's figures that `measure` found, by figure.
    """

    method: str
    variant: str
    level: float
    scores: dict[int, float]
    against_dense: Difference | None
    held_out: float
    held_out_against_dense: Difference | None
    parameters: int
    macs: int
    removed: float
    target_removed: float
    macs_removed: float
    target_macs_removed: float
    layers: dict[str, float]
    ratios: dict[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        name = label_of(self.method)
        return f"{name} ({self.variant})" if self.variant else name

    @property
    def mean(self) -> float:
        return statistics.mean(self.scores.values())

    @property
    def std(self) -> float | None:
        """Of the sample of seeds; None for one seed."""
        return statistics.stdev(self.scores.values()) if len(self.scores) > 1 else None


def label_of(method: str) -> str:
    """
    >>> label_of("smaller-dense"), label_of("shrinkage+magnitude")
    ('smaller dense', 'shrinkage + magnitude')
    """
    return method.replace("-", " ").replace("+", " + ")


@dataclass(frozen=True)
class Table:
    """Runs and timings as they were recorded, and everything that is derived from them."""

    runs: list[dict[str, Any]]
    timings: list[dict[str, Any]]
    metric: Metric

    @property
    def recipe(self) -> dict[str, Any]:
        """That of all runs but the bases, which have a part of it."""
        return next(run["recipe"] for run in self.runs if run["method"] != "base")

    @cached_property
    def rows(self) -> list[Row]:
        """The recipe itself, in the order of `METHODS`, then by level."""
        return [row for row in self._all if not row.variant]

    @cached_property
    def variants(self) -> list[Row]:
        """The ablations."""
        return [row for row in self._all if row.variant]

    @cached_property
    def _all(self) -> list[Row]:
        groups = {(run["method"], run["variant"], run["level"]) for run in self.runs if run["method"] in METHODS}
        if not any((method, "", 0.0) in groups for method in DENSE):
            raise ValueError("There is no dense run to compare with: run the train phase with the method dense first.")
        order = sorted(groups, key=lambda group: (METHODS.index(group[0]), group[1], group[2]))
        return [self._row(*group) for group in order]

    def find(self, method: str, level: float, variant: str = "") -> Row | None:
        """The row, if it was run."""
        found = (row for row in self._all if (row.method, row.variant, row.level) == (method, variant, level))
        return next(found, None)

    @property
    def dense(self) -> Row:
        """What others are compared with."""
        found = self.find(self._dense_method, 0.0)
        assert found is not None
        return found

    @cached_property
    def _dense_method(self) -> str:
        """The better of the learning rates, by the examples that choices are made by."""
        runs = {method: own for method in DENSE if (own := self._of(method, "", 0.0))}
        means = {method: _mean(own, for_choices) for method, own in runs.items()}
        return max(means, key=lambda name: means[name] if self.metric.rises else -means[name])

    def difference(self, row: Row, other: Row) -> Difference | None:
        """By how much `row` is worse than `other`, on the seeds that both have."""
        return paired_difference(self._losses(row), self._losses(other))

    def of(self, row: Row) -> list[dict[str, Any]]:
        """The runs of a row."""
        return self._of(row.method, row.variant, row.level)

    def _of(self, *group: Any) -> list[dict[str, Any]]:
        return [run for run in self.runs if (run["method"], run["variant"], run["level"]) == group]

    def _losses(self, row: Row) -> dict[int, np.ndarray]:
        return _losses(self.of(row), self.metric, _whole)

    def _row(self, method: str, variant: str, level: float) -> Row:
        own, dense = self._of(method, variant, level), self._of(self._dense_method, "", 0.0)
        full = dense[0]
        compared = method != self._dense_method

        def against_dense(part: Part) -> Difference | None:
            return paired_difference(*(_losses(runs, self.metric, part) for runs in (own, dense))) if compared else None

        def mean(name: str) -> float:
            return statistics.mean(run[name] for run in own)

        def removed(name: str) -> float:
            return 1 - mean(name) / full[name]

        timed = [
            t["report"]["ratios"]
            for t in self.timings
            if (t["method"], t["variant"], t["level"]) == (method, variant, level)
        ]
        return Row(
            method=method,
            variant=variant,
            level=level,
            scores={run["seed"]: self.metric.scale * run["score"] for run in sorted(own, key=lambda run: run["seed"])},
            against_dense=against_dense(_whole),
            held_out=self.metric.scale * _mean(own, held_out),
            held_out_against_dense=against_dense(held_out),
            parameters=round(mean("parameters")),
            macs=round(mean("macs")),
            removed=removed("parameters"),
            target_removed=removed("target_parameters"),
            macs_removed=removed("macs"),
            target_macs_removed=removed("target_macs"),
            layers={
                name: statistics.mean(run["layers"].get(name, {"parameters": 0})["parameters"] for run in own)
                / layer["parameters"]
                for name, layer in full["layers"].items()
            },
            ratios=timed[0] if timed else {},
        )


def _whole(examples: Examples) -> Examples:
    return examples


def _mean(runs: list[dict[str, Any]], part: Part) -> float:
    return statistics.mean(float(per_example(part(run["examples"])).mean()) for run in runs)


def _losses(runs: list[dict[str, Any]], metric: Metric, part: Part) -> dict[int, np.ndarray]:
    sign = -metric.scale if metric.rises else metric.scale
    return {run["seed"]: sign * per_example(part(run["examples"])) for run in runs}
