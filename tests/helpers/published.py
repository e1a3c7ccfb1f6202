"""Our rows beside published ones of the same kind, for docs/results.md: what they report, and what differs.

The published numbers are those of the papers; ours are read from model_cards/, so that they follow the cards.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

CARDS = Path(__file__).resolve().parents[2] / "model_cards"
HEADER = ["what", "dense", "pruned", "change", "removed", "MACs, times fewer", "faster"]


@dataclass(frozen=True)
class Published:
    """A row of a paper; None where it is not at hand.

    Attributes:
        removed: What the paper says is gone, in its own terms.
        fewer: How many times fewer MACs.
        faster: How many times faster, on the paper's device.
    """

    what: str
    dense: float | None
    pruned: float | None
    removed: str = ""
    fewer: float | None = None
    faster: float | None = None
    change: float | None = None

    def cells(self) -> list[str]:
        change = self.change
        if change is None and self.dense is not None and self.pruned is not None:
            change = self.pruned - self.dense
        gain = "" if change is None else f"{change:+.2f}"
        return [self.what, number(self.dense), number(self.pruned), gain, self.removed, *map(times, self.costs)]

    @property
    def costs(self) -> tuple[float | None, float | None]:
        return self.fewer, self.faster


@dataclass(frozen=True)
class Kind:
    """What can be set side by side: the rows of papers, ours as `(card, level)`, and what differs between them."""

    title: str
    published: tuple[Published, ...]
    ours: tuple[tuple[str, float], ...]
    differs: str


KINDS = [
    Kind(
        title="A pretrained BERT, fine-tuned on sentences",
        published=(
            Published("CoFi, BERT-base, SST-2", 93.1, 93.0, "60.1 % of the encoder", faster=2.1),
            Published("CoFi, BERT-base, SST-2", 93.1, 90.4, "94.5 % of the encoder", faster=12.2),
            Published("nn_pruning, BERT-base, SQuAD F1", 88.5, 88.72, "59 %", faster=1.84),
            Published("nn_pruning, BERT-base, SQuAD F1", 88.5, 87.71, "74 %", faster=2.44),
            Published("CoFi, BERT-base, SQuAD F1", 88.5, 89.1, "60 %", faster=2.0),
            Published("CoFi, BERT-base, SQuAD F1", 88.5, 82.6, "92.4 %", faster=8.7),
        ),
        ours=(("minilm-sst2", 0.6), ("minilm-sst2", 0.8), ("minilm-sst2", 0.9), ("minilm-sst2-replaced", 0.9)),
        differs=(
            "Model: MiniLM has 6 layers of 384 where BERT-base has 12 of 768, so that less of it is redundant. "
            "Data: we train on the 6,920 whole sentences of SST-2, the papers on its 67,349 phrases, which is "
            "part of why their dense models are better; compare the changes, not the scores. SQuAD is another "
            "task and another metric. Budget: all count the encoder alone, without embeddings. Training: the "
            "papers train for many more epochs than our 2 (4 in the last row). Time: theirs on a GPU with large "
            "batches, ours on one CPU thread at batch 1."
        ),
    ),
    Kind(
        title="A ResNet for CIFAR-10",
        published=(
            Published("DepGraph, ResNet-56", 93.53, 93.77, fewer=2.13),
            Published("DepGraph, ResNet-56", 93.53, 93.64, fewer=2.57),
            Published("DepGraph without sparse learning, ResNet-56", 93.53, 93.46, fewer=2.13),
            Published("DepGraph without sparse learning, ResNet-56", 93.53, 93.36, fewer=2.57),
            Published("ResRep, ResNet-56", None, 93.71),
            Published("GReg, ResNet-56", None, 93.55, fewer=2.12),
            Published("AMC (reinforcement learning), ResNet-56", None, 91.90, fewer=2.0),
            Published("FastNAS, ResNet-20", None, None, fewer=81.2 / 59.2, change=-0.6),
        ),
        ours=(("resnet20-cifar10", 0.5),),
        differs=(
            "Model: ResNet-20 has a third of the layers and MACs of ResNet-56, so that there is less to give "
            "away; FastNAS alone prunes the same network, by 1.37 and not by 2. Data: our copy of CIFAR-10 is "
            "JPEG-compressed and 5,000 of its training images validate, so that accuracies are lower for "
            "everyone. Training: the papers recover for many more epochs than ours, which the card names. "
            "Budget: MACs of the convolutions, met exactly; the papers stop at the first step beyond. Packages "
            "of these methods on *our* network, data and epochs stand in [peers](../model_cards/peers.md)."
        ),
    ),
    Kind(
        title="A vision transformer",
        published=(
            Published("Isomorphic pruning, DeiT from 17.6 G MACs, ImageNet", None, 82.41, fewer=17.6 / 4.2),
            Published("Isomorphic pruning, DeiT from 17.6 G MACs, ImageNet", None, 77.50, fewer=17.6 / 1.2),
        ),
        ours=(("vit-cifar10", 0.5),),
        differs=(
            "Everything: DeiT-base has 86 million parameters, is pretrained on ImageNet and recovers there for "
            "long; ours has a third of a million, on CIFAR-10, from scratch. Budget: theirs MACs of the whole "
            "model, ours parameters of the encoder. Not a comparison, but the only published row of the kind."
        ),
    ),
]


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} ×"


def ours(card: str, level: float) -> list[str]:
    """The dendritic row of a card at a level, in the columns of the papers."""
    rows = [row for row in json.loads((CARDS / f"{card}.json").read_text())["rows"] if not row["variant"]]
    pruned = next(row for row in rows if row["method"] == "dendritic" and row["level"] == level)
    dense = max((row for row in rows if not row["level"]), key=lambda row: row["mean"])
    latency = pruned["ratios"].get("latency_ms_batch_1")
    made = Published(
        f"**ours**: [{card}](../model_cards/{card}.md)",
        dense["mean"],
        pruned["mean"],
        f"{pruned['target_removed']:.1%} of the targets' parameters",
        fewer=dense["macs"] / pruned["macs"],
        faster=None if latency is None else 1 / latency,
    )
    return made.cells()


def one_shot() -> str:
    """Pruned without training, where only a change can be set beside a change."""
    runs: list[dict[str, Any]] = json.loads((CARDS / "oneshot.json").read_text())["runs"]
    chosen = [r for r in runs if (r["importance"], r["reconstruct"], r["sparsity"]) == ("dendritic", True, 0.5)]
    before, after = (100 * fmean(run[when]["accuracy"] for run in chosen) for when in ("before", "after"))
    return (
        "### In one shot\n\nDarwinLM cuts Llama-2-7B to 2.7 billion parameters with structured OBS and an "
        "evolutionary division of the budget, and reports a mean score of 57.2 before any training. Ours "
        f"([oneshot](../model_cards/oneshot.md)) goes from {before:.2f} to {after:.2f} on SST-2 with half of "
        "MiniLM's body gone. A language model of seven billion parameters, a mean over tasks of which the dense "
        "score is not at hand here, and 4.3 of 7 billion parameters against half of a body: the two say nothing "
        "about each other.\n"
    )


def section(grid_of: Any) -> str:
    """The part of the page; `grid_of(header, rows)` writes a table."""
    parts = [
        f"### {kind.title}\n\n"
        f"{grid_of(HEADER, [row.cells() for row in kind.published] + [ours(*row) for row in kind.ours])}\n\n"
        f"What differs. {kind.differs}\n"
        for kind in KINDS
    ]
    intro = (
        "## Beside the papers\n\nPublished rows of the same kind, as their authors report them, and ours from "
        "the cards above. None of them is the same experiment; an empty cell is a number that is not at hand. "
        "Higher is better, a change is in points.\n"
    )
    return "\n".join([intro, *parts, one_shot()])
