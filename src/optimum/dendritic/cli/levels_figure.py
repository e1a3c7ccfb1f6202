"""The figure of several sparsities: how well each model answers, and what is left of its costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .tables import LABELS

STYLES = {"parameters": ("#0072B2", "o"), "bytes": ("#E69F00", "s"), "macs": ("#009E73", "v")}  # of Okabe and Ito
SCORE, DENSE = ("#D55E00", "^"), "0.35"


def save_levels(before: Mapping[str, Any], results: Sequence[Mapping[str, Any]], path: Path) -> Path | None:
    """Draw the models of `results` against their sparsities beside the dense one; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    results = sorted(results, key=lambda result: result["config"]["sparsity"])
    sparsities = [result["config"]["sparsity"] for result in results]
    metrics = [name for name in before if name not in LABELS]
    figure = Figure(figsize=(5 * (1 + len(metrics)), 4.2), layout="constrained")
    figure.suptitle("What each sparsity costs and saves, in one shot")
    scores, costs = [*figure.subplots(1, 1 + len(metrics), squeeze=False)[0][:-1]], figure.axes[-1]
    for axes, metric in zip(scores, metrics, strict=True):
        colour, marker = SCORE
        axes.axhline(before[metric], color=DENSE, linestyle=":", label="dense")
        axes.plot(
            sparsities, [result["after"][metric] for result in results], color=colour, marker=marker, label=metric
        )
        axes.set(xlabel="sparsity", title=metric)
    for name, (colour, marker) in STYLES.items():
        shares = [100 * result["after"][name] / before[name] for result in results]
        costs.plot(sparsities, shares, color=colour, marker=marker, label=LABELS[name])
    costs.set(xlabel="sparsity", ylabel="% of dense that is left", ylim=(0, 105), title="costs")
    for axes in figure.axes:
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    return path
