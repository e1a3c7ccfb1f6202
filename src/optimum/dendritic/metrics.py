"""Metrics of `evaluate` that need no Hub: task metrics, and efficiency beside them.

`evaluate.load` fetches its metrics from the Hub; these come with the package and run offline. They are computed by
scikit-learn, as those on the Hub are. Both come with the extra `metrics`.

    quality = evaluate.combine([Accuracy(), Efficiency(measure(model, inputs, baseline=dense))])
    quality.compute(predictions=predictions, references=labels)
"""

from typing import Any

import datasets
import evaluate
import numpy as np
from transformers import EvalPrediction

from .efficiency import EfficiencyReport
from .errors import invalid

CLASSES = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
INPUTS = """
Args:
    predictions: class numbers, one for each sample.
    references: class numbers, one for each sample.
"""


class Accuracy(evaluate.Metric):
    """Share of the samples whose class is right: `compute(predictions=..., references=...)["accuracy"]`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(str(self.__doc__), "", CLASSES, INPUTS)

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        from sklearn.metrics import accuracy_score

        return {"accuracy": float(accuracy_score(references, predictions))}


def accuracy(found: EvalPrediction) -> dict[str, float]:
    """The accuracy of a classifier's logits: `Trainer(..., compute_metrics=accuracy)`."""
    assert isinstance(found.predictions, np.ndarray), "one tensor of logits"
    classes = found.predictions.argmax(-1)
    return Accuracy(keep_in_memory=True).compute(predictions=classes, references=found.label_ids) or {}


class F1(evaluate.Metric):
    """Harmonic mean of precision and recall; `compute` takes scikit-learn's `average` too ("binary" by default)."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(str(self.__doc__), "", CLASSES, INPUTS)

    def _compute(self, predictions: list[int], references: list[int], average: str = "binary") -> dict[str, float]:
        from sklearn.metrics import f1_score

        return {"f1": float(f1_score(references, predictions, average=average))}


class Efficiency(evaluate.Metric):
    """What a model costs, in one flat dictionary: every figure that was measured, and `<figure>_ratio` for each that a
    baseline has too (0.4 is 40 % of its cost). What was not measured is absent.

    It reads neither predictions nor references, whatever their type, so that it combines with any task metric.

    Args:
        report: what `measure` returned; one that is given to `compute` takes precedence.
        options: the options of `evaluate.Metric`.
    """

    def __init__(self, report: EfficiencyReport | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.report = report

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo("What a model costs, measured.", "", datasets.Features({}), "")

    def add(self, **ignored: Any) -> None:
        """Do nothing: samples do not change what a model costs."""

    def add_batch(self, **ignored: Any) -> None:
        """Do nothing: samples do not change what a model costs."""

    def compute(
        self, *, predictions: Any = None, references: Any = None, report: EfficiencyReport | None = None
    ) -> dict[str, int | float]:
        """The figures and ratios of `report`, or of the one that the metric was made with.

        Raises:
            DendriticError: there is neither of them.
        """
        return self._compute(report or self.report)

    def _compute(self, report: EfficiencyReport | None) -> dict[str, int | float]:
        if report is None:
            rule = "there is no report to take the figures from"
            raise invalid("report", report, rule, "Pass Efficiency(measure(model, example_inputs)).")
        figures = {name: figure for name, figure in report.figures().items() if figure is not None}
        return figures | {f"{name}_ratio": ratio for name, ratio in report.ratios.items()}
