"""The card and the figure of `ranking.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

TEMPLATE = Path(__file__).with_name("ranking.md")


def render(result: dict[str, Any], path: Path) -> None:
    """Write the card at `path`, with its figure beside it."""
    figure = path.with_suffix(".png")
    draw(result, figure)
    together = result["removed together"]
    settings = result["settings"]
    path.write_text(
        TEMPLATE.read_text().format(
            **settings,
            channels=sum(result["channels"]),
            blocks=len(result["channels"]),
            dense=_tested(result["dense"]),
            warm=_tested(result["early"]),
            ceiling=f"{result['ceiling']:.2f}",
            agreement=_agreement(result),
            noise=_noise(result["noise"]),
            together=_together(together, result),
            device=result["environment"]["device"],
            versions=", ".join(f"{k} {v}" for k, v in result["environment"]["versions"].items()),
            figure=figure.name,
        )
    )


def draw(result: dict[str, Any], path: Path) -> None:
    """Scores against the loss without the channel, and how many channels of each block every ranking removes."""
    figure, panels = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    blocks = [block for block, count in enumerate(result["channels"]) for _ in range(count)]
    for axes, name in zip(panels, ("dendritic", "magnitude"), strict=False):
        points = axes.scatter(result["points"]["truth"], result["points"][name], c=blocks, cmap="viridis", s=8)
        axes.set(xscale="symlog", yscale="log", xlabel="rise of the loss without the channel", ylabel=name)
        axes.xaxis.get_major_locator().set_params(numticks=5)
    panels[0].set_xscale("symlog", linthresh=1e-4)
    panels[1].set_xscale("symlog", linthresh=1e-4)
    figure.colorbar(points, ax=panels[1], label="block")
    for name in ("dendritic", "magnitude", "the loss without it"):
        panels[2].plot([100 * share for share in result["layers"][name]], marker="o", label=name)
    panels[2].set(xlabel="block", ylabel="channels removed (%)")
    panels[2].legend(fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _agreement(result: dict[str, Any]) -> str:
    head = [
        "score",
        "all",
        "within layers",
        "between layers",
        "read early: all",
        "within",
        "between",
        "early with late",
    ]
    rows = []
    for name, own in result["agreement"].items():
        early = result["agreement of early scores"][name]
        numbers = [*own.values(), *early.values(), result["early with late"][name]]
        rows.append([name, *(f"{number:.2f}" for number in numbers)])
    return _grid(head, rows)


def _noise(noise: dict[str, dict[str, float]]) -> str:
    steps = list(noise["late"])
    rows = [[name, *(f"{own[step]:.2f}" if step in own else "" for step in steps)] for name, own in noise.items()]
    return _grid(["read", *(f"{step} steps" for step in steps)], rows)


def _together(together: dict[str, dict[str, Any]], result: dict[str, Any]) -> str:
    sums = result["sum of single rises"]
    rows = [
        [
            name,
            str(own["channels"]),
            _tested(own["at once"]),
            _tested(own["recovered"]) if "recovered" in own else "",
            f"{sums[name]:.2f}" if name in sums else "",
        ]
        for name, own in sorted(together.items(), key=lambda item: item[1].get("recovered", item[1]["at once"])["loss"])
    ]
    return _grid(["ranking", "channels removed", "at once", "recovered", "sum of the single rises"], rows)


def _tested(found: dict[str, float]) -> str:
    return f"{found['loss']:.3f} ({found['accuracy']:.1f} %)"


def _grid(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
