"""The card and the figure of `ranking.py`."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

TEMPLATE = Path(__file__).with_name("ranking.md")
STYLES = {  # colours of Okabe and Ito, and markers
    "dendritic": ("#0072B2", "o"),
    "magnitude": ("#E69F00", "s"),
    "the loss without it": ("#009E73", "v"),
}


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
            halves=f"{result['halves']:.2f}",
            ceiling=f"{_ceiling(result['halves']):.2f}",
            findings="\n".join(f"* {sentence}" for sentence in findings(result)),
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
    figure, panels = plt.subplots(1, 3, figsize=(15, 5), layout="constrained")
    figure.suptitle("What each score knows of a ResNet-20's channels")
    blocks = [block for block, count in enumerate(result["channels"]) for _ in range(count)]
    for axes, name in zip(panels, ("dendritic", "magnitude"), strict=False):
        points = axes.scatter(result["points"]["truth"], result["points"][name], c=blocks, cmap="viridis", s=8)
        axes.set(xscale="symlog", yscale="log", xlabel="rise of the loss without the channel", ylabel=f"{name} score")
        axes.set_title(f"{name.capitalize()} against the truth")
        axes.xaxis.get_major_locator().set_params(numticks=5)
    panels[0].set_xscale("symlog", linthresh=1e-4)
    panels[1].set_xscale("symlog", linthresh=1e-4)
    figure.colorbar(points, ax=panels[1], label="block")
    for name, (colour, marker) in STYLES.items():
        shares = [100 * share for share in result["layers"][name]]
        panels[2].plot(shares, color=colour, marker=marker, label=name)
    panels[2].set(xlabel="block", ylabel="channels removed (%)", title="Where each ranking removes")
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
            _recovered(own["recovered"]),
            f"{sums[name]:.2f}" if name in sums else "",
        ]
        for name, own in sorted(together.items(), key=lambda item: _loss(item[1]))
    ]
    return _grid(["ranking", "channels removed", "at once", "recovered", "sum of the single rises"], rows)


def findings(result: dict[str, Any]) -> list[str]:
    """What the numbers say, in sentences that carry them."""
    late, together = result["agreement"], result["removed together"]
    steps = [step for step, found in result["noise"]["late"].items() if found >= 0.8]
    first, mean = late["dendritic"], late["more batches"]
    truth, dense = together["the loss without it"], result["dense"]["loss"]
    alone = result["sum of single rises"]["the loss without it"]
    best, worst = (pick(together, key=lambda name: _loss(together[name])) for pick in (min, max))
    return [
        f"Noise: the running score agrees to 0.8 with readings that it has not seen after {steps[0]} steps; the mean "
        f"of all readings agrees with the truth by {mean['all']:.2f}, the running score by {first['all']:.2f}."
        if steps
        else "Noise: the running score does not reach an agreement of 0.8 with readings that it has not seen.",
        f"Between layers the dendritic score agrees with the truth by {first['between layers']:.2f}, magnitude by "
        f"{late['magnitude']['between layers']:.2f}; within layers by {first['within layers']:.2f} and "
        f"{late['magnitude']['within layers']:.2f}.",
        f"The sign: the second order of the loss, which keeps it, agrees by {late['second order']['all']:.2f}.",
        f"Interplay: the channels of the lowest single rises add up to {alone:.2f}, but removed at once they cost "
        f"{truth['at once']['loss'] - dense:.2f}: channels stand in for each other, and a perfect score of single "
        f"channels recovers to {_loss(truth):.3f}, the dendritic score to {_loss(together['dendritic']):.3f}.",
        f"After the recovery the best is {best} ({_loss(together[best]):.3f}) and the worst {worst} "
        f"({_loss(together[worst]):.3f}); magnitude alone has {_loss(together['magnitude']):.3f}.",
    ]


def _loss(own: dict[str, Any]) -> float:
    return statistics.mean(found["loss"] for found in own["recovered"])


def _recovered(found: list[dict[str, float]]) -> str:
    losses, accuracies = ([one[name] for one in found] for name in ("loss", "accuracy"))
    spread = f" ± {statistics.stdev(losses):.3f}" if len(losses) > 1 else ""
    return f"{statistics.mean(losses):.3f}{spread} ({statistics.mean(accuracies):.1f} %)"


def _ceiling(halves: float) -> float:
    """The largest correlation with a mean whose halves correlate so (Spearman 1910, Brown 1910)."""
    return max(0.0, 2 * halves / (1 + halves)) ** 0.5


def _tested(found: dict[str, float]) -> str:
    return f"{found['loss']:.3f} ({found['accuracy']:.1f} %)"


def _grid(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
