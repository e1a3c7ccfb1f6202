"""The figures of a card: the score against what was removed and against the speed, and what is left of each layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib

from optimum.dendritic.inspection.layer_map import draw_levels

from .runs import DENSE
from .summary import Row, Table

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

STYLES = {  # colours of Okabe and Ito, which colour-blind readers tell apart, and markers
    "dense": ("0.35", "*"),
    "dense-own-rate": ("0.6", "P"),
    "dendritic": ("#0072B2", "o"),
    "dendritic-macs": ("#56B4E9", "p"),
    "magnitude": ("#E69F00", "s"),
    "shrinkage+magnitude": ("#CC79A7", "D"),
    "random": ("#D55E00", "^"),
    "smaller-dense": ("#009E73", "v"),
}
REMOVED: dict[str, tuple[str, Callable[[Row], float]]] = {
    "params": ("parameters", lambda row: row.removed),
    "macs": ("MACs", lambda row: row.macs_removed),
}
SPREAD = "mean ± standard deviation of the seeds"


def draw(table: Table, budget: str, card: Path) -> dict[str, Path]:
    """Caption -> PNG beside the card. A figure whose numbers were not measured is not drawn."""
    name = table.metric.name.removesuffix(" %").capitalize()
    what, _ = REMOVED[budget]
    figures = {f"{name} against {what} removed": _removed(table, budget, name, card)}
    if any(row.ratios for row in table.rows):
        figures[f"{name} against speed"] = _speed(table, name, card)
    if any(row.method == "dendritic" for row in table.rows):
        figures["Share of each layer's parameters that dendritic pruning leaves"] = _density(table, card)
    return figures


def _removed(table: Table, budget: str, name: str, card: Path) -> Path:
    """Curves over the levels; a dot for each method where there is one level only."""
    what, share = REMOVED[budget]
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    if len({row.level for row in table.rows if row.level}) == 1:
        _dots(axes, table)
        level = next(row.level for row in table.rows if row.level)
        axes.set(xlabel=f"{table.metric.name} ({SPREAD})", title=f"{name} at a sparsity of {level:g}")
    else:
        _lines(axes, table, lambda row: 100 * share(row))
        axes.set(xlabel=f"{what} of the model removed (%)", ylabel=f"{table.metric.name}\n({SPREAD})")
        axes.set_title(f"{name} against {what} removed")
        axes.legend(fontsize="small")
    return _save(figure, card, "removed")


def _speed(table: Table, name: str, card: Path) -> Path:
    names = sorted({name for row in table.rows for name in row.ratios if name.startswith("latency")}, key=_batch)
    size = (5 * len(names), 4.5)
    figure, panels = plt.subplots(1, len(names), figsize=size, sharey=True, squeeze=False, layout="constrained")
    figure.suptitle(f"{name} against speed, of the methods that were timed")
    for axes, batch in zip(panels[0], names, strict=True):
        _lines(axes, table, lambda row, batch=batch: 1 / row.ratios[batch] if batch in row.ratios else None)
        axes.axvline(1, color=STYLES["dense"][0], linestyle=":")
        axes.set(title=f"batch {_batch(batch)}", xlabel="times as fast as dense")
        axes.margins(x=0.08)
    panels[0][0].set_ylabel(f"{table.metric.name}\n({SPREAD})")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize="small", frameon=False)
    return _save(figure, card, "latency")


def _batch(name: str) -> int:
    return int(name.rpartition("_")[2])


def _density(table: Table, card: Path) -> Path:
    figure = plt.figure(layout="constrained")
    levels = {f"{row.level:.0%} removed": row for row in table.rows if row.method == "dendritic"}
    draw_levels(figure, {title: {k: 100 * v for k, v in row.layers.items()} for title, row in levels.items()})
    return _save(figure, card, "density")


def _dots(axes: Axes, table: Table) -> None:
    """Mean and standard deviation of every method, one below the other; dense as a band."""
    rows = [row for method in STYLES for row in table.rows if row.method == method]
    for place, row in enumerate(rows):
        colour, marker = STYLES[row.method]
        axes.errorbar(row.mean, place, xerr=row.std or 0.0, color=colour, marker=marker, markersize=8, capsize=3)
        if row.method in DENSE:
            axes.axvspan(row.mean - (row.std or 0.0), row.mean + (row.std or 0.0), color=colour, alpha=0.2, linewidth=0)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(alpha=0.3, axis="x")


def _lines(axes: Axes, table: Table, x: Callable[[Row], float | None]) -> None:
    """Mean and standard deviation of every method along `x`; dense as a band. One level is a dot."""
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
