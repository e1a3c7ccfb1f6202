"""What is left of a model as a figure: its groups of units, then which inputs and outputs of each layer are left.

Matplotlib is imported when a figure is drawn; it comes with the extra `plots`.
"""

import re
from os.path import commonprefix
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import invalid
from .density import Density, LayerDensity, Side, density
from .group_figure import GONE, draw_groups, size_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

KEPT, COUNTED = "#1d4e89", "#e9b04f"
COLUMNS = 384  # of a strip; wider sides are averaged, so that a column shows the share of its places
ROW, LEAST_ROW, TALLEST = 0.19, 0.06, 22.0  # inches
LABELLED = 110  # with more layers than this only the first of each block has its name


def density_figure(model: nn.Module | Density) -> "Figure":
    """What is left of an injected or packed model: above, its groups of units; below, the density map with a row for
    each layer, its inputs, outputs and parameters.

    Args:
        model: the model, or its `density`.

    Raises:
        DendriticError: nothing of the model was touched, or its dense shapes are not known.
        ImportError: matplotlib is not installed.
    """
    found = model if isinstance(model, Density) else density(model)
    if not found.layers:
        raise invalid("model", found.model, "none of its layers was touched", "Show an injected or a packed model.")
    from matplotlib.figure import Figure  # not pyplot: no window, no state of its own
    from matplotlib.patches import Patch

    rows = len(found.layers)
    row = max(LEAST_ROW, min(ROW, TALLEST / rows))
    names = short_names([layer.name for layer in found.layers])
    above = size_of(found.groups)[1]
    figure = Figure(figsize=(11.5, above + row * rows + 1.6), layout="constrained")
    below: FigureBase = figure
    if found.groups:
        (top,), (below,) = figure.subfigures(2, 1, height_ratios=[above, row * rows + 1.6], squeeze=False)
        draw_groups(top, found.groups)
    panels = below.subplots(1, 3, sharey=True, width_ratios=[5, 5, 2])
    size = min(7.0, 72 * row * 0.62)
    edges = [i for i in range(1, rows) if block(found.layers[i].name) != block(found.layers[i - 1].name)]
    _strips(panels[0], "inputs that it reads", [layer.inputs for layer in found.layers], size)
    _strips(panels[1], "outputs that it makes", [layer.outputs for layer in found.layers], size)
    _bars(panels[2], found.layers, size)
    labelled = range(rows) if rows <= LABELLED else [0, *edges]
    panels[0].set_yticks(list(labelled), [names[i] for i in labelled], fontsize=size if rows <= LABELLED else 6)
    for axes in panels:
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if row > 0.1:
            axes.hlines([i - 0.5 for i in range(1, rows)], *axes.get_xlim(), color="white", linewidth=1.2)
        axes.hlines([i - 0.5 for i in edges], *axes.get_xlim(), color="black", linewidth=0.6)
    left, dense = found.target_parameters()
    title = f"{found.model}: {percent(left / dense)} of the parameters of {rows} layers left ({left:,} of {dense:,})"
    figure.suptitle(title, fontsize=10)
    key = {"left (paler: in a part of the arbors)": KEPT, "left: how many, not which": COUNTED, "removed": GONE}
    patches = [Patch(facecolor=colour, edgecolor="#999999", linewidth=0.5, label=name) for name, colour in key.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def save_density_figure(model: nn.Module | Density, path: str | Path) -> Path:
    """Draw `density_figure` into a file of the format that its suffix names; its folder is created if it is missing."""
    figure, path = density_figure(model), Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def short_names(names: list[str]) -> list[str]:
    """The names without the parts that all of them begin with; a part before a number stays.

    >>> short_names(["bert.encoder.layer.0.query", "bert.encoder.layer.1.query"])
    ['layer.0.query', 'layer.1.query']
    >>> short_names(["conv1", "conv2"]), short_names(["classifier"])
    (['conv1', 'conv2'], ['classifier'])
    """
    shared = len(commonprefix([name.split(".")[:-1] for name in names]))
    if shared and any(name.split(".")[shared].isdigit() for name in names):
        shared -= 1
    return [".".join(name.split(".")[shared:]) for name in names]


def block(name: str) -> str:
    """A name up to its first number: `layer.3` of `layer.3.attention.query`; empty without one."""
    found = re.match(r".*?(?<![^.])\d+(?![^.])", name)
    return found.group() if found else ""


def percent(share: float) -> str:
    """`share` in whole percent, or with one decimal below 1 %, so that what is left is not shown as 0 %.

    >>> percent(0.5), percent(0.0041), percent(0.0)
    ('50 %', '0.4 %', '0 %')
    """
    return f"{100 * share:.1f} %" if 0 < share < 0.01 else f"{100 * share:.0f} %"


def _strips(axes: "Axes", title: str, sides: list[Side], size: float) -> None:
    """One strip for each side, as wide whatever its size, and the numbers beside it."""
    image = torch.stack([_colours(side) for side in sides]).numpy()
    axes.imshow(image, aspect="auto", interpolation="nearest", extent=(0, 1, len(sides) - 0.5, -0.5))
    for place, side in enumerate(sides):
        axes.text(1.01, place, f"{side.kept} / {side.size}", va="center", fontsize=size, clip_on=False)
    axes.set(xlim=(0, 1.24), xticks=[])
    axes.set_title(title, fontsize=9, loc="left")


def _colours(side: Side) -> Tensor:
    """The strip of one side, red, green and blue, `[COLUMNS, 3]`."""
    if side.places is None:
        share, full = (torch.arange(COLUMNS) < side.share * COLUMNS).float(), COUNTED
    else:
        share, full = F.adaptive_avg_pool1d(side.places[None], COLUMNS)[0], KEPT
    return torch.lerp(_rgb(GONE).expand(COLUMNS, 3), _rgb(full), share[:, None])


def _rgb(colour: str) -> Tensor:
    return torch.tensor(list(bytes.fromhex(colour[1:]))) / 255


def _bars(axes: "Axes", layers: tuple[LayerDensity, ...], size: float) -> None:
    shares = [layer.share for layer in layers]
    widest = max(1.0, *shares)
    axes.barh(range(len(layers)), [widest] * len(layers), height=1, color=GONE)
    axes.barh(range(len(layers)), shares, height=1, color=KEPT)
    for place, share in enumerate(shares):
        axes.text(widest * 1.03, place, percent(share), va="center", fontsize=size)
    axes.set(xlim=(0, widest * 1.3), xticks=[])
    axes.set_title("parameters", fontsize=9, loc="left")
