"""The claims and sentences that follow from a result table. A claim that fails reads as failed."""

from collections.abc import Iterator
from dataclasses import dataclass

from .metric import Metric
from .runs import PRUNED
from .statistics import Difference
from .summary import Row, Table, label_of
from .task import Card

CONTROLS = (*(method for method in PRUNED if method != "dendritic"), "smaller-dense")


@dataclass(frozen=True)
class Claim:
    text: str
    measured: str
    holds: bool | None  # None: not measured


def claims(table: Table, card: Card) -> list[Claim]:
    """What the card promises, each held against the number: the budget, the loss, the controls and the speed."""
    found = []
    tolerances, latencies = card.tolerances, card.latencies
    owner = {"targets": "target modules", "model": "whole model"}[card.scope]
    for row in (row for row in table.rows if row.method == "dendritic"):
        start = f"dendritic at {row.level:.0%}"
        counted = {"params": "parameters", "macs": "MACs"}[card.budget]
        share = _share_removed(row, card)
        found.append(
            Claim(
                f"{start} removes {row.level:.0%} of the {counted} of the {owner}",
                f"{share:.2%}",
                round(share, 4) >= row.level,
            )
        )
        if row.level in tolerances and row.against_dense is not None:
            limit = tolerances[row.level]
            text = f"{start} loses at most {limit:g} {table.metric.unit} against dense"
            measured = f"{table.metric.write(row.against_dense.mean)} {table.metric.unit}"
            found.append(Claim(text, measured, row.against_dense.mean <= limit))
        if row.level in tolerances and row.held_out_against_dense is not None:
            limit, loss = tolerances[row.level], row.held_out_against_dense.mean
            text = f"{start} loses at most {limit:g} {table.metric.unit} against dense on the held-out part"
            found.append(Claim(text, f"{table.metric.write(loss)} {table.metric.unit}", loss <= limit))
        found.extend(_against_controls(table, row, start))
        for name in sorted(name for name in row.ratios if name.startswith("latency")):
            batch, limit = name.rpartition("_")[2], latencies.get(row.level, 1.0)
            text = f"{start} takes at most {limit:g} x dense's time at batch {batch}"
            found.append(Claim(text, f"{row.ratios[name]:.3f}", row.ratios[name] <= limit))
        if not row.ratios:
            found.append(Claim(f"{start} is faster than dense", "", None))
    return found


def _share_removed(row: Row, card: Card) -> float:
    if card.scope == "model":
        return row.removed if card.budget == "params" else row.macs_removed
    return row.target_removed if card.budget == "params" else row.target_macs_removed


def _against_controls(table: Table, row: Row, start: str) -> Iterator[Claim]:
    for control in CONTROLS:
        text = f"{start} is better than {label_of(control)}"
        other = table.find(control, row.level)
        difference = None if other is None else table.difference(row, other)
        if difference is None:
            yield Claim(text, "", None)
        else:
            yield Claim(text, write(difference, table.metric), difference.high < 0)


def write(difference: Difference, metric: Metric) -> str:
    """Gain (positive: better) and its interval.

    >>> from harness.metric import ACCURACY
    >>> write(Difference(mean=-1.25, low=-2.0, high=-0.5, seeds=3), ACCURACY)
    '+1.25 points [+0.50, +2.00]'
    """
    mean, low, high = (
        metric.write(-value + 0.0, sign=True) for value in (difference.mean, difference.high, difference.low)
    )
    return f"{mean} {metric.unit} [{low}, {high}]"


def findings(table: Table) -> list[str]:
    """One sentence for each level of the method, against dense and every control."""
    sentences = []
    for row in (row for row in table.rows if row.method == "dendritic"):
        others = [table.dense, *(found for control in CONTROLS if (found := table.find(control, row.level)))]
        compared = "; ".join(_compare(table, row, other) for other in others)
        sentences.append(f"Dendritic, {row.level:.0%}: {score(row, table.metric)} is {compared}.")
    return sentences


def _compare(table: Table, row: Row, other: Row) -> str:
    difference = table.difference(row, other)
    if difference is None:
        return f"not compared with {other.label}, which shares no seed"
    text = write(difference, table.metric)
    if difference.separable:
        return f"{'worse' if difference.mean > 0 else 'better'} than {other.label} ({text})"
    return f"not separable from {other.label} ({text})"


def score(row: Row, metric: Metric) -> str:
    """Mean, and the standard deviation over several seeds."""
    return metric.write(row.mean) + ("" if row.std is None else f" ± {metric.write(row.std)}")
