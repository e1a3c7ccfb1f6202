"""Why one ranking of channels is better than another, on ResNet-20: scores held against what removing a channel does.

    python examples/benchmarks/analysis/ranking.py --model runs/cifar10-resnet20/base-0-seed0

The model is read as it is ("late"), and in the middle of a short training at a high learning rate ("early"). Every
channel inside a block is removed alone (the truth that a score stands for), then many at once by every score, with the
normalisations made anew and some steps of training. Takes some minutes of one core. The numbers go
to `--card` (Markdown, with JSON and a figure beside it).
"""

import argparse
import copy
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForImageClassification, PreTrainedModel
from transformers.utils import logging

sys.path[:0] = [str(Path(__file__).resolve().parents[level]) for level in (1, 2)]

from cifar10 import MEAN, PADDING, STD  # noqa: E402
from harness.images import Augmented, decoded, normalised  # noqa: E402
from harness.runs import environment, write_json  # noqa: E402
from harness.statistics import for_choices  # noqa: E402

import resnet20  # noqa: E402, F401
from analysis.channels import (  # noqa: E402
    blocks_of,
    costs,
    gate_gradients,
    group_norms,
    mask_,
    removal_losses,
    without,
)
from analysis.ranking_card import render  # noqa: E402
from analysis.scores import (  # noqa: E402
    SCORES,
    Readings,
    Rule,
    between,
    divided,
    running,
    spearman,
    weakest,
    within,
)

BATCH = 128
TOGETHER = ("magnitude", "dendritic", "second order", "scaled norm", "rank mixture", "rank mixture, scaled")
ROUNDS = ("dendritic", "second order")
PAIRS = (
    ("dendritic", "magnitude"),
    ("dendritic", "scaled norm"),
    ("dendritic", "the loss without it"),
    ("magnitude", "dendritic"),
)


class Data:
    """Training images as they are augmented, and those of the validation images that choices are made by."""

    def __init__(self, dataset: str, folder: Path):
        splits = decoded(dataset, folder)
        self.augmented = Augmented(*splits["train"], MEAN, STD, PADDING, channels_last=True)
        images, labels = splits["validation"]
        own = torch.tensor(for_choices(list(range(len(labels)))))
        self.validation = (normalised(images[own], MEAN, STD), labels[own])

    def drawn(self, samples: int) -> tuple[Tensor, Tensor]:
        batch = self.augmented.__getitems__(torch.randperm(len(self.augmented))[:samples].tolist())
        return batch["pixel_values"], batch["labels"]


def read(model: PreTrainedModel, data: Data, steps: int) -> Readings:
    """Gate gradients of `steps` batches, as a training sees them and with fixed normalisation."""
    pixels, labels = data.drawn(steps * BATCH)
    probe = copy.deepcopy(model).train()
    batches, _ = gate_gradients(probe, pixels, labels, BATCH)
    samples, squares = gate_gradients(model.eval(), pixels, labels, BATCH)
    rows, scales, columns = (torch.cat(parts) for parts in zip(*group_norms(model), strict=True))
    means = batches.unflatten(0, (steps, BATCH)).mean(1)
    return Readings(
        batches=means, samples=samples, batch_size=BATCH, squares=squares, rows=rows, scales=scales, columns=columns
    )


def train_(
    model: PreTrainedModel, data: Data, steps: int, rate: float, removed: Tensor | None = None, stop: int | None = None
) -> None:
    """SGD with Nesterov momentum, the rate falling to zero; what is `removed` stays zero; at most `stop` steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    model.train()
    for step in range(steps if stop is None else stop):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        pixels, labels = data.drawn(BATCH)
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(pixel_values=pixels).logits.float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if removed is not None:
            mask_(model, removed)


@torch.inference_mode()
def tested(model: PreTrainedModel, data: Data) -> dict[str, float]:
    pixels, labels = data.validation
    with torch.autocast("cpu", torch.bfloat16):
        logits = torch.cat([model.eval()(pixel_values=part).logits.float() for part in pixels.split(250)])
    accuracy = (logits.argmax(1) == labels).float().mean().item()
    return {"loss": round(F.cross_entropy(logits, labels).item(), 4), "accuracy": round(100 * accuracy, 2)}


@torch.no_grad()
def renormalised(model: PreTrainedModel, pixels: Tensor) -> PreTrainedModel:
    """Its batch normalisations have the statistics of these images."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
    for part in pixels.split(BATCH):
        with torch.autocast("cpu", torch.bfloat16):
            model.train()(pixel_values=part)
    for norm in norms:
        norm.momentum = 0.1
    return model


def agreements(scores: dict[str, Tensor], truth: Tensor, layers: Tensor) -> dict[str, dict[str, float]]:
    return {
        name: {
            "all": spearman(score, truth),
            "within layers": within(score, truth, layers),
            "between layers": between(score, truth, layers),
        }
        for name, score in scores.items()
    }


def noise(readings: Readings) -> dict[str, float]:
    """Rank correlation of the running score after some steps with the mean of the steps that it has not seen."""
    half = len(readings.batches) // 2
    rest = readings.batches[half:].square().mean(0)
    steps = [step for step in (1, 5, 10, 25, 50, 100, 200, 400) if step <= half]
    return {str(step): spearman(running(readings.batches[:step], 0.99), rest) for step in steps}


def in_rounds(
    model: PreTrainedModel, data: Data, rule: Rule, cost: Tensor, args: argparse.Namespace
) -> Bool[Tensor, " channels"]:
    """What `rule` removes where it reads anew after every part of the way: what stands in for others then counts."""
    removed = torch.zeros(len(cost), dtype=torch.bool)
    for turn in range(1, args.rounds + 1):
        pruned = renormalised(without(model, removed), data.drawn(10 * BATCH)[0])
        score = rule(read(pruned, data, max(2, args.steps // args.rounds))).masked_fill(removed, -torch.inf)
        removed = weakest(score, cost, args.level * turn / args.rounds)
    return removed


def removed_together(
    model: PreTrainedModel, data: Data, gone: dict[str, Tensor], args: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """The validation loss after channels are removed at once, and after recoveries; these draw the same for each."""
    pixels, _ = data.drawn(10 * BATCH)
    found = {}
    for name, removed in tqdm(gone.items(), desc="removal at once"):
        pruned = renormalised(without(model, removed), pixels)
        recovered = []
        for draw in range(args.recoveries):
            torch.manual_seed(args.seed + 1 + draw)
            own = copy.deepcopy(pruned)
            train_(own, data, args.recovery, args.recovery_rate, removed)
            recovered.append(tested(own, data))
        found[name] = {"channels": int(removed.sum()), "at once": tested(pruned, data), "recovered": recovered}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--dataset", default="uoft-cs/cifar10")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/cifar10-resnet20"), help="has the decoded images")
    parser.add_argument("--card", type=Path, default=Path("model_cards/ranking-resnet20.md"))
    parser.add_argument("--steps", type=int, default=100, help="batches that a score is read from")
    parser.add_argument("--images", type=int, default=1000, help="of which the loss without a channel is taken")
    parser.add_argument("--early", type=int, default=60, help="steps at a high rate before the early reading")
    parser.add_argument("--rate", type=float, default=0.1, help="of those steps")
    parser.add_argument("--level", type=float, default=0.5, help="share of the channels' MACs that goes at once")
    parser.add_argument("--recovery", type=int, default=60, help="steps of training after that")
    parser.add_argument("--recoveries", type=int, default=3, help="of each, with other draws")
    parser.add_argument("--rounds", type=int, default=5, help="in which some rankings read anew")
    parser.add_argument("--recovery_rate", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.disable_progress_bar()
    torch.manual_seed(args.seed)
    render(analysed(args), args.card)


def analysed(args: argparse.Namespace) -> dict[str, Any]:
    """All numbers; kept beside the card, JSON-ready."""
    data = Data(args.dataset, args.output_dir / "data")
    model: Any = AutoModelForImageClassification.from_pretrained(args.model, dtype=torch.float32)
    model = model.to(memory_format=torch.channels_last)
    counts = [block.reader.in_channels for block in blocks_of(model)]
    layers = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    late = read(model, data, args.steps)
    warm = copy.deepcopy(model)
    train_(warm, data, 4 * args.early, args.rate, stop=args.early)
    early = read(warm, data, args.steps // 2)
    scores = {name: rule(late) for name, rule in SCORES.items()}
    early_scores = {name: rule(early) for name, rule in SCORES.items()}
    rises = removal_losses(model, *data.drawn(args.images))
    truth = rises.mean(1)
    cost = costs(model, data.validation[0])
    rankings = {name: scores[name] for name in TOGETHER}
    rankings |= {"dendritic, early": early_scores["dendritic"], "the loss without it": truth}
    gone = {name: weakest(score, cost, args.level) for name, score in rankings.items()}
    mixed = {
        f"{many} says how many, {which} which": divided(gone[many], rankings[which], layers) for many, which in PAIRS
    }
    mixed |= {f"{name}, in rounds": in_rounds(model, data, SCORES[name], cost, args) for name in ROUNDS}
    result = {
        "settings": {name: value.name if isinstance(value, Path) else value for name, value in vars(args).items()}
        | {"dataset": Path(args.dataset).name},
        "dense": tested(model, data),
        "early": tested(warm, data),
        "halves": spearman(rises[:, 0::2].mean(1), rises[:, 1::2].mean(1)),
        "agreement": agreements(scores, truth, layers),
        "agreement of early scores": agreements(early_scores, truth, layers),
        "early with late": {name: spearman(early_scores[name], scores[name]) for name in SCORES},
        "noise": {"late": noise(late), "early": noise(early)},
        "removed together": removed_together(model, data, gone | mixed, args),
        "layers": {
            name: [round(float(removed[layers == layer].float().mean()), 3) for layer in range(len(counts))]
            for name, removed in gone.items()
        },
        "sum of single rises": {name: round(float(truth[removed].sum()), 4) for name, removed in gone.items()},
        "environment": environment(),
        "points": {"truth": truth.tolist(), **{name: scores[name].tolist() for name in ("dendritic", "magnitude")}},
        "channels": counts,
    }
    write_json(args.card.with_suffix(".json"), result)
    return result


if __name__ == "__main__":
    main()
