"""The figures of a card: what is left of each group or layer, the run, and the scores against what was removed.

They are drawn from the content of `efficiency.json` alone. matplotlib is imported here and not before; a figure whose
numbers are not known is not drawn.
"""

from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from ...inspection.group_figure import draw_groups, size_of
from ...inspection.layer_map import draw_layers
from ...layout.left import Left
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
    """What is left of each group of units where that is known; else a map of depth by kind of layer where layers
    repeat, else one bar for each layer."""
    compression = record.get("compression", {})
    groups = [Left(**group) for group in compression.get("groups", [])]
    if groups:
        figure.set_size_inches(*size_of(groups))
        draw_groups(figure, groups)
        return True
    kept = {name: 100 * layer["kept"] for name, layer in compression.get("layers", {}).items()}
    if not kept:
        return False
    figure.suptitle("What is left of each layer")
    draw_layers(figure, {_label(name): share for name, share in kept.items()})
    return True


def _training(figure: "Figure", record: Mapping[str, Any]) -> bool:
    """Loss above, sparsity below, over the steps; the phases as bands."""
    history = record.get("training", {}).get("history", [])
    points = [point for point in history if "loss" in point and "sparsity" in point]
    if len(points) < LEAST_POINTS:
        return False
    figure.set_size_inches(7, 5)
    figure.suptitle("The training")
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


def _marker(steps: list[int]) -> str | None:
    return "." if len(steps) <= 50 else None
