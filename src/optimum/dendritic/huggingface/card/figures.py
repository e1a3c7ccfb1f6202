"""The figures of a card: what is left of each layer, the run, and the scores against what was removed.

They are drawn from the content of `efficiency.json` alone. matplotlib is imported here and not before; a figure whose
numbers are not known is not drawn.
"""

import re
from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from ...schedules import PHASES
from .escape import shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.get_logger(__name__)

FOLDER = "figures"
COLOURS = {"loss": "#0072B2", "sparsity": "#D55E00", "score": "#0072B2"}  # of Okabe and Ito
NARROWEST = 0.1  # share of the width that a phase needs to have its name above it
LEAST_POINTS = 3  # of a curve; fewer are better read in a table


def draw(record: Mapping[str, Any]) -> dict[str, tuple[str, bytes]]:
    """Name of each figure that could be drawn -> its path within the card's folder, and its PNG. Nothing, and a line in
    the log, without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning(
            "The card has no figures: matplotlib is not installed. Run pip install optimum-dendritic[plots]."
        )
        return {}
    drawn = {}
    for name, plot in (("density", _density), ("training", _training), ("evaluations", _evaluations)):
        figure, image = Figure(layout="constrained"), BytesIO()
        try:
            if plot(figure, record):
                figure.savefig(image, format="png", dpi=150)
                drawn[name] = (f"{FOLDER}/{name}.png", image.getvalue())
        except Exception as error:  # numbers and names that another wrote
            logger.warning(f"The figure {name} is not drawn: {type(error).__name__}: {shown(error)}")
    return drawn


def _label(name: object) -> str:
    """A foreign name as matplotlib is to show it: a dollar would begin a formula."""
    return shown(name).replace("$", r"\$")


def _density(figure: "Figure", record: Mapping[str, Any]) -> bool:
    """A map of depth by kind of layer where layers repeat, else one bar for each layer."""
    layers = record.get("compression", {}).get("layers", {})
    kept = {name: 100 * layer["kept"] for name, layer in layers.items()}
    if not kept:
        return False
    kinds, depths = _grid(kept)
    if len(depths) < 2 or 2 * len(kept) < len(kinds) * len(depths):
        _bars(figure, kept)
        return True
    cells = [[kinds[kind].get(depth, float("nan")) for depth in depths] for kind in kinds]
    figure.set_size_inches(max(7.0, 3.5 + 0.45 * len(depths)), 1.6 + 0.32 * len(kinds))
    axes = figure.subplots()
    image = axes.imshow(cells, vmin=0, vmax=100, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(depths)), list(map(_label, depths)))
    axes.set_yticks(range(len(kinds)), list(map(_label, kinds)))
    axes.set(xlabel="block", title="What is left of each layer")
    for row, line in enumerate(cells):
        for column, value in enumerate(line):
            if value == value and len(depths) <= 16:
                colour = "black" if value > 60 else "white"
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize="small")
    figure.colorbar(image, label="% of the parameters left")
    return True


def _bars(figure: "Figure", kept: dict[str, float]) -> None:
    figure.set_size_inches(7, min(18.0, 1.2 + 0.28 * len(kept)))
    axes = figure.subplots()
    bars = axes.barh(range(len(kept)), list(kept.values()), color=COLOURS["loss"])
    axes.set_yticks(range(len(kept)), list(map(_label, _short(list(kept)))))
    axes.bar_label(bars, fmt="%.0f", padding=3, fontsize="small")
    axes.invert_yaxis()
    axes.set(
        title="What is left of each layer", xlabel="% of the parameters left", xlim=(0, max(108.0, *kept.values()))
    )
    axes.grid(alpha=0.3, axis="x")


def _training(figure: "Figure", record: Mapping[str, Any]) -> bool:
    """Loss above, sparsity below, over the steps; the phases as bands."""
    history = record.get("training", {}).get("history", [])
    points = [point for point in history if "loss" in point and "sparsity" in point]
    if len(points) < LEAST_POINTS:
        return False
    figure.set_size_inches(7, 5)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    steps = [point["step"] for point in points]
    above.plot(steps, [point["loss"] for point in points], color=COLOURS["loss"], marker=_marker(steps))
    sparsity = [100 * point["sparsity"] for point in points]
    below.step(steps, sparsity, where="post", color=COLOURS["sparsity"], linestyle="--")
    for phase, name in enumerate(PHASES):
        own = [point["step"] for point in points if point.get("phase") == phase]
        if own:
            end = min([step for step in steps if step > own[-1]], default=own[-1])
            for axes in (above, below):
                axes.axvspan(own[0], end, color="0.35", alpha=(0.12, 0.04, 0.0)[phase], linewidth=0)
            if end - own[0] >= NARROWEST * (steps[-1] - steps[0]):
                above.annotate(name, (own[0], 1.02), xycoords=("data", "axes fraction"), color="0.35", fontsize="small")
    above.set(ylabel="training loss")
    below.set(xlabel="step", ylabel="removed (%)", ylim=(0, max(5.0, 1.1 * max(sparsity))))
    for axes in (above, below):
        axes.grid(alpha=0.3)
    return True


def _evaluations(figure: "Figure", record: Mapping[str, Any]) -> bool:
    """The first score against the share that was removed by then; the evaluations of one run, in its order."""
    taken = [entry for entry in record.get("evaluations", []) if "sparsity" in entry]
    names = [name for name in dict.fromkeys(n for entry in taken for n in entry["metrics"]) if name != "loss"]
    metric = (names or ["loss"])[0]
    points = [entry for entry in taken if metric in entry["metrics"]]
    if len({round(entry["sparsity"], 4) for entry in points}) < LEAST_POINTS:
        return False
    figure.set_size_inches(7, 4.5)
    axes = figure.subplots()
    removed = [100 * entry["sparsity"] for entry in points]
    scores = [entry["metrics"][metric] for entry in points]
    axes.plot(removed, scores, color=COLOURS["score"], marker="o", alpha=0.8)
    for entry, x, y in (list(zip(points, removed, scores, strict=True))[i] for i in (0, -1)):
        if "step" in entry:
            axes.annotate(
                f"step {entry['step']:,}", (x, y), xytext=(6, 6), textcoords="offset points", fontsize="small"
            )
    axes.set_title(f"{_label(metric)} while it was pruned")
    budget = "MACs" if record["compression"]["config"]["budget"] == "macs" else "parameters"
    axes.set(xlabel=f"removed (% of the {budget} of the target layers)", ylabel=_label(metric))
    axes.margins(x=0.12, y=0.15)
    axes.grid(alpha=0.3)
    return True


def _grid(kept: dict[str, float]) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Kind -> number of the block -> % left, and all numbers: names are cut at their first number.

    >>> _grid({"a.layer.0.query": 50.0, "a.layer.1.query": 25.0, "a.layer.0.key": 75.0})
    ({'query': {'0': 50.0, '1': 25.0}, 'key': {'0': 75.0}}, ['0', '1'])
    """
    kinds: dict[str, dict[str, float]] = {}
    for name, value in kept.items():
        head, number, tail = re.fullmatch(r"(.*?)(?:\.(\d+)(\..*)?)?", name).groups()  # type: ignore[union-attr]
        kind = name if number is None else (tail or head).strip(".")
        kinds.setdefault(kind, {})[number or "0"] = value
    depths = sorted({depth for row in kinds.values() for depth in row}, key=int)
    return kinds, depths


def _short(names: list[str]) -> list[str]:
    """Names without the modules that they all share."""
    parts = [name.split(".") for name in names]
    shared = 0
    while len(names) > 1 and len({tuple(part[: shared + 1]) for part in parts}) == 1:
        shared += 1
    return [".".join(part[shared:]) or name for part, name in zip(parts, names, strict=True)]


def _marker(steps: list[int]) -> str | None:
    return "." if len(steps) <= 50 else None
