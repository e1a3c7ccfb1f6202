"""What part of each layer is left, as a figure: a map of depth by kind of layer where layers repeat, else bars.

Only what is drawn on is taken from matplotlib, so that nothing is imported here.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure, FigureBase

COLOUR = "#0072B2"  # of Okabe and Ito
MOST_NUMBERED = 16  # depths of which each cell has its number


def draw_layers(figure: "Figure", shares: Mapping[str, float]) -> None:
    """Draw the percentages of the parameters that are left of layers, by their names, and size the figure for it."""
    kinds, depths, counted = grid(shares)
    if len(depths) < 2 or 2 * len(shares) < len(kinds) * len(depths):
        figure.set_size_inches(7, min(18.0, 1.4 + 0.28 * len(shares)))
        return _bars(figure, shares)
    figure.set_size_inches(max(7.0, 3.5 + 0.45 * len(depths)), 1.8 + 0.32 * len(kinds))
    _map(figure, kinds, depths, counted)


def draw_levels(figure: "Figure", levels: Mapping[str, Mapping[str, float]]) -> None:
    """As `draw_layers`, of several models of one architecture beside each other, each under its title."""
    kinds, depths, _ = grid(next(iter(levels.values())))
    figure.suptitle("What is left of each layer")
    figure.set_size_inches((2.6 + 0.42 * max(6, len(depths))) * len(levels), 2.3 + 0.32 * len(kinds))
    parts = figure.subfigures(1, len(levels), squeeze=False)[0]
    for part, (title, shares) in zip(parts, levels.items(), strict=True):
        part.suptitle(title, fontsize="medium")
        kinds, depths, counted = grid(shares)
        _bars(part, shares) if len(depths) < 2 else _map(part, kinds, depths, counted)


def grid(shares: Mapping[str, float]) -> tuple[dict[str, dict[str, float]], list[str], str]:
    """Kind -> number of the part -> % left, all numbers, and what is numbered: names are cut at their first number.

    >>> grid({"a.layer.0.query": 50.0, "a.layer.1.query": 25.0, "a.layer.0.key": 75.0})
    ({'query': {'0': 50.0, '1': 25.0}, 'key': {'0': 75.0}}, ['0', '1'], 'layer')
    """
    kinds: dict[str, dict[str, float]] = {}
    counted = ""
    for name, value in shares.items():
        head, number, tail = re.fullmatch(r"(.*?)(?:\.(\d+)(\..*)?)?", name).groups()  # type: ignore[union-attr]
        kind = name if number is None else (tail or head).strip(".")
        counted = counted or ("" if number is None else head.rpartition(".")[2])
        kinds.setdefault(kind, {})[number or "0"] = value
    depths = sorted({depth for row in kinds.values() for depth in row}, key=int)
    return kinds, depths, counted


def _map(figure: "FigureBase", kinds: Mapping[str, Mapping[str, float]], depths: list[str], counted: str) -> None:
    axes = figure.subplots()
    cells = [[row.get(depth, float("nan")) for depth in depths] for row in kinds.values()]
    image = axes.imshow(cells, vmin=0, vmax=100, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(depths)), depths)
    axes.set_yticks(range(len(kinds)), list(kinds), fontsize="small")
    axes.set_xlabel(counted)
    for row, line in enumerate(cells):
        for column, value in enumerate(line):
            if value == value and len(depths) <= MOST_NUMBERED:
                colour = "black" if value > 60 else "white"
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize="small")
    figure.colorbar(image, ax=axes, label="% of the parameters left")


def _bars(figure: "FigureBase", shares: Mapping[str, float]) -> None:
    axes = figure.subplots()
    bars = axes.barh(range(len(shares)), list(shares.values()), color=COLOUR)
    axes.set_yticks(range(len(shares)), _short(list(shares)), fontsize="small")
    axes.set_ylim(-1, len(shares))
    axes.bar_label(bars, fmt="%.0f", padding=3, fontsize="small")
    axes.invert_yaxis()
    axes.set(xlabel="% of the parameters left", xlim=(0, max(108.0, *shares.values())))
    axes.grid(alpha=0.3, axis="x")


def _short(names: list[str]) -> list[str]:
    """Names without the modules that they all share."""
    parts = [name.split(".") for name in names]
    shared = 0
    while len(names) > 1 and len({tuple(part[: shared + 1]) for part in parts}) == 1:
        shared += 1
    return [".".join(part[shared:]) or name for part, name in zip(parts, names, strict=True)]
