"""Metrics: the numbers are scikit-learn's and the report's, offline, alone and combined."""

import socket

import evaluate
import numpy as np
import pytest
import torch
from helpers.compare import every
from helpers.models import build
from transformers import EvalPrediction

from optimum.dendritic import DendriticError, measure
from optimum.dendritic.metrics import F1, Accuracy, Efficiency, accuracy

QUICK = {"seconds": 0.02, "threads": 1, "large_batch": 2, "memory": False}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No connection can be made, and nothing is kept in the user's cache."""

    def refuse(*arguments):
        raise AssertionError(f"a connection to {arguments[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", str(tmp_path / "metrics"))


@pytest.fixture(scope="module")
def report():
    small, inputs = build("bert")
    return measure(small, inputs, baseline=build("bert")[0], **QUICK)


@pytest.mark.parametrize("as_type", [list, np.array, torch.tensor])
def test_accuracy_counts_what_is_right(as_type):
    computed = Accuracy().compute(predictions=as_type([0, 1, 2, 2]), references=as_type([0, 1, 1, 2]))
    assert computed == {"accuracy": 0.75}


def test_accuracy_of_what_a_trainer_found():
    logits = np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0], [0.0, 1.0]])
    assert accuracy(EvalPrediction(logits, np.array([0, 1, 1, 1]))) == {"accuracy": 0.75}


@pytest.mark.parametrize("keep_in_memory", [False, True])
def test_accuracy_in_batches(keep_in_memory: bool):
    metric = Accuracy(keep_in_memory=keep_in_memory)
    metric.add_batch(predictions=[1, 1], references=[1, 0])
    metric.add(prediction=3, reference=3)
    assert metric.compute() == {"accuracy": pytest.approx(2 / 3)}
    assert metric.compute(predictions=[1], references=[1]) == {"accuracy": 1.0}, "it starts anew"


def test_f1_weighs_precision_and_recall():
    predictions, references = [1, 1, 0, 0], [1, 0, 0, 1]
    assert F1().compute(predictions=predictions, references=references) == {"f1": 0.5}
    computed = F1().compute(predictions=[0, 1, 2], references=[0, 1, 1], average="macro")
    assert computed == {"f1": pytest.approx((1 + 2 / 3 + 0) / 3)}


def test_efficiency_is_the_report_and_absent_where_that_is(report):
    computed = Efficiency(report).compute()
    assert computed["parameters"] == report.parameters and computed["macs_ratio"] == report.ratios["macs"] == 1.0
    assert computed["latency_ms_batch_2"] == report.latency_ms[2].median
    assert not {"energy_joules", "peak_memory_bytes"} & computed.keys(), "they were not measured"
    assert every(isinstance(figure, int | float) for figure in computed.values())
    assert Efficiency().compute(report=report.baseline)["bytes"] == report.baseline.bytes


def test_it_combines_with_task_metrics_at_once_and_in_batches(report):
    expected = {"accuracy": 0.5, **Efficiency(report).compute()}
    combined = evaluate.combine([Accuracy(), Efficiency(report)])
    assert combined.compute(predictions=[1, 0], references=[1, 1]) == expected
    combined.add_batch(predictions=[1], references=[1])
    combined.add_batch(predictions=[0], references=[1])
    assert combined.compute() == expected


@pytest.mark.parametrize("predictions", [["a text"], [[0.1, 0.9]], [{"id": 1}]])
def test_it_reads_no_predictions_whatever_they_are(report, predictions: list):
    metric = Efficiency(report)
    metric.add_batch(predictions=predictions, references=predictions)
    assert metric.compute(predictions=predictions, references=predictions) == metric.compute()


def test_without_a_report_it_says_what_to_pass():
    with pytest.raises(DendriticError, match=r"report = None: .* Pass Efficiency\(measure\(model, example_inputs\)\)"):
        Efficiency().compute()
