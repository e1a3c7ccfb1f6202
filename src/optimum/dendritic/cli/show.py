"""`optimum-cli dendritic show`: the density map of a model in the terminal, and with its groups as a figure."""

import os
import shutil
import sys
from argparse import Namespace
from collections import Counter
from dataclasses import dataclass
from itertools import groupby

import torch.nn.functional as F

from ..errors import DendriticError, invalid
from ..inspection.density import Density, LayerDensity, Side, density
from ..inspection.describe import together
from ..inspection.figures import block, percent, save_density_figure, short_names
from .loading import import_modules, load_model, write_json

WIDEST, NARROWEST = 40, 6  # characters of a strip


@dataclass(frozen=True)
class Style:
    """What the terminal can show.

    Attributes:
        levels: The characters for a place, from one that no arbor has to one that all arbors have.
        counted: The character for places of which only the number is known.
        colours: The escape sequences for removed, left, counted and plain text, which are empty without colours.
    """

    levels: str
    counted: str
    colours: tuple[str, str, str, str]


BLOCKS, ASCII = ("·░▒▓█", "▄"), (".:-=#", "+")
COLOURS, NO_COLOURS = ("\033[90m", "\033[34m", "\033[33m", "\033[0m"), ("", "", "", "")


def run(args: Namespace) -> str:
    """Load, write the figure and the JSON file if they are asked for, and return the map as text.

    Raises:
        DendriticError: an argument names something that does not exist or cannot be shown.
    """
    import_modules(args.modules)
    found = density(load_model(args.model, args))
    if args.figure is not None:
        try:
            save_density_figure(found, args.figure)
        except ImportError as error:
            remedy = "Install it: pip install optimum-dendritic[plots]."
            raise invalid("--figure", args.figure, str(error), remedy) from error
        except DendriticError:
            raise
        except ValueError as error:  # matplotlib does not know the suffix
            raise invalid("--figure", args.figure, str(error), "Name a .png, .svg or .pdf file.") from error
    write_json(args, {"path": args.model, **found.to_dict()})
    return draw(found, shutil.get_terminal_size().columns, style())


def style() -> Style:
    """Colours on a terminal unless `NO_COLOR` is set; ASCII where the output cannot hold blocks."""
    try:
        "".join(BLOCKS).encode(sys.stdout.encoding or "ascii")
        characters = BLOCKS
    except UnicodeEncodeError:
        characters = ASCII
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return Style(*characters, COLOURS if coloured else NO_COLOURS)


def draw(found: Density, width: int, style: Style) -> str:
    """The map in lines of at most `width` characters, as far as the names and figures leave room."""
    if not found.layers:
        return f"{found.model}: nothing was removed, all of it is dense.\n{_dense(found)}"
    names = short_names([layer.name for layer in found.layers])
    rows = [_Row(name, layer) for name, layer in zip(names, found.layers, strict=True)]
    figures = [max(len(figure) for figure in column) for column in zip(*(row.figures() for row in rows), strict=True)]
    label = max(len(row.label) for row in rows)
    strip = max(NARROWEST, min(WIDEST, (width - label - sum(figures) - 10) // 2))
    heads = ["", "inputs".ljust(strip + 1 + figures[0]), "outputs".ljust(strip + 1 + figures[1]), "left"]
    lines = ["  ".join([heads[0].ljust(label), *heads[1:]])]
    for name, members in groupby(rows, key=lambda row: row.block):
        lines += [name] if name else []
        lines += [row.line(label, strip, figures, style) for row in members]
    return "\n".join([found.model, "", *lines, "", _key(style), *_totals(found)])


class _Row:
    """A line of the map."""

    def __init__(self, name: str, layer: LayerDensity) -> None:
        self.layer, self.block = layer, block(name)
        rest = name.removeprefix(f"{self.block}.") if self.block else name
        self.label = f"  {rest}" if self.block else rest

    def figures(self) -> list[str]:
        layer = self.layer
        counts = [f"{side.kept}/{side.size}" for side in (layer.inputs, layer.outputs)]
        return [*counts, percent(layer.share), _form(layer)]

    def line(self, label: int, strip: int, widths: list[int], style: Style) -> str:
        reads, makes, share, form = self.figures()
        parts = [
            self.label.ljust(label),
            f"{_strip(self.layer.inputs, strip, style)} {reads.ljust(widths[0])}",
            f"{_strip(self.layer.outputs, strip, style)} {makes.ljust(widths[1])}",
            f"{share.rjust(widths[2])}  {form}",
        ]
        return "  ".join(parts).rstrip()


def _strip(side: Side, width: int, style: Style) -> str:
    """`width` characters, each for the places that it covers."""
    gone, left, counted, plain = style.colours
    if side.places is None:
        kept = max(1, round(side.share * width)) if side.kept else 0
        return f"{counted}{style.counted * kept}{gone}{style.levels[0] * (width - kept)}{plain}"
    shares = F.adaptive_avg_pool1d(side.places[None], width)[0].tolist()
    top = len(style.levels) - 1
    cells = [style.levels[0 if share == 0 else max(1, min(top, int(share * top + 1e-3)))] for share in shares]
    runs = ["".join(run) for _, run in groupby(cells, key=lambda cell: cell == style.levels[0])]
    return "".join(f"{gone if run[0] == style.levels[0] else left}{run}" for run in runs) + plain


def _form(layer: LayerDensity) -> str:
    form = layer.words.partition(":")[0]
    return "whole" if form == "plain" and layer.parameters == layer.dense_parameters else form


def _key(style: Style) -> str:
    return f"{style.levels} share of the places that is left, none to all; {style.counted} how many, not which"


def _totals(found: Density) -> list[str]:
    forms = Counter(_form(layer) for layer in found.layers)
    layers = ", ".join(f"{count} {form}" for form, count in forms.items())
    left, dense = found.target_parameters()
    return [
        f"{len(found.layers)} layers ({layers}): {left:,} of {dense:,} parameters, {percent(left / dense)}",
        f"whole model: {found.parameters:,} of {found.dense_parameters:,} parameters, "
        + percent(found.parameters / found.dense_parameters),
        *([_dense(found)] if found.untouched else []),
    ]


def _dense(found: Density) -> str:
    return f"dense, not a target: {together(found.untouched)}"
