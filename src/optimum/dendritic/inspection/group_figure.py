"""A model's groups of units and what is left of each, as a figure: bars by the part of the model that they belong to.

What runs through several parts, such as a residual stream, has a line of its own below. Only what is drawn on is taken
from matplotlib, so that nothing is imported here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..layout.left import COUNTED as KINDS
from ..layout.left import Left

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

GONE = "#e4e7eb"
COLOURS: dict[str, str] = dict(
    zip(KINDS, ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#56B4E9"), strict=True)
)
LINE, LEAST_LINE, TALLEST, AROUND = 0.24, 0.08, 14.0, 0.7  # inches
BAR = 0.55  # share of a column; its numbers stand beside it


@dataclass(frozen=True)
class Cell:
    """A bar: on which line, in which column and over how many."""

    left: Left
    line: int
    column: int
    columns: int = 1


def draw_groups(figure: "FigureBase", groups: Sequence[Left]) -> None:
    """Draw how much is left of each of `groups`, of which there is at least one."""
    labels, kinds, cells = arranged(groups)
    axes = figure.subplots()
    size = min(8.0, 72 * _line(len(labels)) * 0.55)
    for cell in cells:
        _bar(axes, cell, size)
    through = [cell.line for cell in cells if cell.left.first != cell.left.last]
    if through and kinds:
        axes.axhline(min(through) - 0.5, color="#999999", linewidth=0.6)
    axes.set_yticks(range(len(labels)), labels, fontsize=size)
    axes.set_xticks([column + 0.01 for column in range(len(kinds))], map(_titled, kinds), fontsize=9, ha="left")
    axes.set(xlim=(0, max(1, len(kinds))), ylim=(len(labels) - 0.5, -0.5))
    axes.set_title("What is left of each group of units", fontsize=10, loc="left")
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)


def size_of(groups: Sequence[Left]) -> tuple[float, float]:
    """The inches that `draw_groups` needs, across and down; none for no groups."""
    labels, kinds, _ = arranged(groups)
    lines = len(labels)
    return (2.8 + 3.0 * max(1, len(kinds)), lines * _line(lines) + AROUND) if lines else (0.0, 0.0)


def arranged(groups: Sequence[Left]) -> tuple[list[str], list[str], list[Cell]]:
    """The labels of the lines, the kinds that have a column, and the bars."""
    wide = [each for each in groups if each.first != each.last]
    narrow = [each for each in groups if each.first == each.last]
    kinds = [kind for kind in KINDS if any(each.kind == kind for each in narrow)]
    places = list(dict.fromkeys(each.first for each in narrow))
    names = _short([*places, *(name for each in wide for name in (each.first, each.last))])
    labels = [names[place] for place in places] + [_through(each, names) for each in wide]
    cells = [Cell(each, places.index(each.first), kinds.index(each.kind)) for each in narrow]
    cells += [Cell(each, line, 0, max(1, len(kinds))) for line, each in enumerate(wide, start=len(places))]
    return labels, kinds, cells


def _bar(axes: "Axes", cell: Cell, size: float) -> None:
    room = cell.columns - 1 + BAR
    axes.barh(cell.line, room, height=0.72, left=cell.column + 0.01, color=GONE)
    axes.barh(cell.line, room * cell.left.share, height=0.72, left=cell.column + 0.01, color=COLOURS[cell.left.kind])
    told = f"{cell.left.kept:,} of {cell.left.units:,} · {100 * cell.left.share:.0f} %"
    axes.text(cell.column + room + 0.03, cell.line, told, va="center", fontsize=size)


def _line(lines: int) -> float:
    return max(LEAST_LINE, min(LINE, TALLEST / lines))


def _titled(kind: str) -> str:
    return "input segments" if kind == "inputs" else kind


def _through(left: Left, names: dict[str, str]) -> str:
    return f"{left.kind}: {names[left.first]} … {names[left.last]}"


def _short(names: list[str]) -> dict[str, str]:
    """The names without the parts that all of them begin with, as matplotlib is to show them: a dollar would begin a
    formula. A part before a number stays."""
    parts = [name.split(".") for name in names]
    shared = 0
    while len({tuple(part[: shared + 1]) for part in parts}) == 1 and all(len(part) > shared + 1 for part in parts):
        shared += 1
    if shared and any(part[shared].isdigit() for part in parts):
        shared -= 1
    return {name: ".".join(part[shared:]).replace("$", r"\$") for name, part in zip(names, parts, strict=True)}
