"""The three figures of the MNIST card."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

if TYPE_CHECKING:
    from mnist_summary import Row

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

COLOURS = {
    "dense": "0.35",
    "dendritic": "tab:blue",
    "dendritic-macs": "tab:cyan",
    "magnitude": "tab:orange",
    "random": "tab:red",
    "smaller-dense": "tab:green",
}


def draw(rows: list[Row], labels: dict[str, str], card: Path) -> dict[str, Path]:
    """Caption -> PNG beside the card. A figure whose numbers were not measured is not drawn."""
    figures = {"Accuracy against parameters removed": _accuracy(rows, labels, card)}
    if any(row.latency_1 is not None for row in rows):
        figures["Accuracy against latency"] = _latency(rows, labels, card)
    if any(row.method.startswith("dendritic") for row in rows):
        figures["Density of each layer"] = _density(rows, labels, card)
    return figures


def _accuracy(rows: list[Row], labels: dict[str, str], card: Path) -> Path:
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    _lines(axes, rows, labels, lambda row: 100 * row.removed)
    axes.set(xlabel="parameters of the model removed (%)", ylabel="test accuracy (%)")
    axes.legend(fontsize="small")
    return _save(figure, card, "accuracy")


def _latency(rows: list[Row], labels: dict[str, str], card: Path) -> Path:
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.5), sharey=True, layout="constrained")
    readers: dict[int, Callable[[Row], float | None]] = {1: lambda row: row.latency_1, 64: lambda row: row.latency_64}
    for axes, (size, latency) in zip(panels, readers.items(), strict=True):
        _lines(axes, rows, labels, latency)
        axes.axvline(1, color=COLOURS["dense"], linestyle=":")
        axes.set(title=f"batch {size}", xlabel="latency, share of dense")
    panels[0].set_ylabel("test accuracy (%)")
    panels[0].legend(fontsize="small")
    return _save(figure, card, "latency")


def _density(rows: list[Row], labels: dict[str, str], card: Path) -> Path:
    methods = [method for method in labels if method.startswith("dendritic") and any(r.method == method for r in rows)]
    size = (5 * len(methods), 4)
    figure, panels = plt.subplots(1, len(methods), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axes, method in zip(panels[0], methods, strict=True):
        own = [row for row in rows if row.method == method]
        width = 0.8 / len(own)
        for i, row in enumerate(own):
            places = [j + (i - (len(own) - 1) / 2) * width for j in range(len(row.layers))]
            axes.bar(places, [100 * share for share in row.layers.values()], width, label=f"{row.level:.0%} removed")
        axes.set_xticks(range(len(own[0].layers)), list(own[0].layers))
        axes.set_title(labels[method])
    panels[0][0].set_ylabel("parameters left (%)")
    panels[0][0].legend(fontsize="small")
    return _save(figure, card, "density")


def _lines(axes: Axes, rows: list[Row], labels: dict[str, str], x: Callable[[Row], float | None]) -> None:
    """Mean and standard deviation of every method along `x`; dense as a band."""
    for method, own in _by_method(rows, labels):
        if method == "dense":
            spread = own[0].std or 0.0
            axes.axhline(own[0].mean, color=COLOURS[method], label=labels[method])
            axes.axhspan(own[0].mean - spread, own[0].mean + spread, color=COLOURS[method], alpha=0.2)
            continue
        points = [(place, row.mean, row.std or 0.0) for row in own if (place := x(row)) is not None]
        if points:
            places, means, spreads = zip(*points, strict=True)
            axes.errorbar(places, means, spreads, color=COLOURS[method], label=labels[method], marker="o", capsize=3)
    axes.grid(alpha=0.3)


def _by_method(rows: list[Row], labels: dict[str, str]) -> Iterator[tuple[str, list[Row]]]:
    for method in labels:
        if own := [row for row in rows if row.method == method]:
            yield method, own


def _save(figure, card: Path, name: str) -> Path:
    path = card.with_name(f"{card.stem}-{name}.png")
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path
