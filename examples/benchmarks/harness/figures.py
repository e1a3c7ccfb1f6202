"""The figures of a card: the score against what was removed and against latency, and the density of each layer."""

from __future__ import annotations

from collections.abc import Callable
from os.path import commonprefix
from pathlib import Path

import matplotlib

from .runs import DENSE
from .summary import Row, Table

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

STYLES = {  # colours of Okabe and Ito, which colour-blind readers tell apart, and markers
    "dense": ("0.35", ""),
    "dense-own-rate": ("0.6", ""),
    "dendritic": ("#0072B2", "o"),
    "magnitude": ("#E69F00", "s"),
    "shrinkage+magnitude": ("#CC79A7", "D"),
    "random": ("#D55E00", "^"),
    "smaller-dense": ("#009E73", "v"),
}
REMOVED: dict[str, tuple[str, Callable[[Row], float]]] = {
    "params": ("parameters", lambda row: row.removed),
    "macs": ("MACs", lambda row: row.macs_removed),
}


def draw(table: Table, budget: str, card: Path) -> dict[str, Path]:
    """Caption -> PNG beside the card. A figure whose numbers were not measured is not drawn."""
    name = table.metric.name.removesuffix(" %")
    what, _ = REMOVED[budget]
    figures = {f"{name.capitalize()} against {what} removed": _removed(table, budget, card)}
    if any(row.ratios for row in table.rows):
        figures[f"{name.capitalize()} against latency"] = _latency(table, card)
    if any(row.method == "dendritic" for row in table.rows):
        figures["Share of each layer's parameters that dendritic pruning leaves"] = _density(table, card)
    return figures


def _removed(table: Table, budget: str, card: Path) -> Path:
    what, share = REMOVED[budget]
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    _lines(axes, table, lambda row: 100 * share(row))
    axes.set(xlabel=f"{what} of the model removed (%)", ylabel=table.metric.name, title="What pruning costs")
    axes.legend(fontsize="small")
    return _save(figure, card, "removed")


def _latency(table: Table, card: Path) -> Path:
    names = sorted({name for row in table.rows for name in row.ratios if name.startswith("latency")}, key=_batch)
    size = (5 * len(names), 4.5)
    figure, panels = plt.subplots(1, len(names), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axes, name in zip(panels[0], names, strict=True):
        _lines(axes, table, lambda row, name=name: 1 / row.ratios[name] if name in row.ratios else None)
        axes.axvline(1, color=STYLES["dense"][0], linestyle=":")
        axes.set(title=f"batch {_batch(name)}", xlabel="times as fast as dense")
    panels[0][0].set_ylabel(table.metric.name)
    panels[0][0].legend(fontsize="small")
    return _save(figure, card, "latency")


def _batch(name: str) -> int:
    return int(name.rpartition("_")[2])


def _density(table: Table, card: Path) -> Path:
    rows = [row for row in table.rows if row.method == "dendritic"]
    names = list(rows[0].layers)
    shared = len(commonprefix(names).rpartition(".")[0]) + 1 if len(names) > 1 else 0
    size = (max(6.0, 0.25 * len(names)), 3.2 + 0.4 * len(rows))
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    cells = [[100 * share for share in row.layers.values()] for row in rows]
    image = axes.imshow(cells, vmin=0, vmax=100, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(names)), [name[shared:] for name in names], rotation=90, fontsize=6)
    axes.set_yticks(range(len(rows)), [f"{row.level:.0%} removed" for row in rows])
    figure.colorbar(image, label="% left")
    return _save(figure, card, "density")


def _lines(axes: Axes, table: Table, x: Callable[[Row], float | None]) -> None:
    """Mean and standard deviation of every method along `x`; dense as a band."""
    for method, (colour, marker) in STYLES.items():
        own = [row for row in table.rows if row.method == method]
        if method in DENSE and own:
            spread = own[0].std or 0.0
            axes.axhline(own[0].mean, color=colour, label=own[0].label)
            axes.axhspan(own[0].mean - spread, own[0].mean + spread, color=colour, alpha=0.2)
            continue
        points = [(place, row.mean, row.std or 0.0) for row in own if (place := x(row)) is not None]
        if points:
            places, means, spreads = zip(*points, strict=True)
            line = "-" if len(points) > 1 else "none"
            axes.errorbar(
                places, means, spreads, color=colour, label=own[0].label, marker=marker, linestyle=line, capsize=3
            )
    axes.grid(alpha=0.3)


def _save(figure, card: Path, name: str) -> Path:
    path = card.with_name(f"{card.stem}-{name}.png")
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path
