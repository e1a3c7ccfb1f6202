"""ModelOpt: FastNAS searches widths by what each alone costs in accuracy, prunes at once, and the model recovers."""

from pathlib import Path

import modelopt.torch.opt as mto  # pyright: ignore[reportMissingImports]
import modelopt.torch.prune as mtp  # pyright: ignore[reportMissingImports]
import torch
from modelopt.torch.prune.fastnas import FastNASConfig  # pyright: ignore[reportMissingImports]
from torch import nn

from peers.job import Job


def compress(model: nn.Module, job: Job) -> nn.Module:
    batches = list(job.batches(8))

    def accuracy(candidate: nn.Module) -> float:
        with torch.inference_mode():
            hits = [(candidate(**b).logits.argmax(-1) == b["labels"]).float().mean() for b in batches]
        return float(torch.stack(hits).mean())

    rules = FastNASConfig().model_dump()
    for kind, divisor in (("nn.Conv2d", "channel_divisor"), ("nn.BatchNorm2d", "feature_divisor")):
        rules[kind]["*"][divisor] = 4
    model, _ = mtp.prune(
        model,
        mode=[("fastnas", rules)],
        constraints={{"macs": "flops", "params": "params"}[job.budget]: job.allowed(model)},
        dummy_input=(job.inputs["pixel_values"],),
        config={
            "data_loader": batches,
            "collect_func": lambda batch: batch["pixel_values"],
            "score_func": accuracy,
            "max_iter_data_loader": 8,
            "checkpoint": str(job.scratch / "search.pt"),
        },
    )
    return job.train(model)


def save(model: nn.Module, folder: Path) -> None:
    mto.save(model, folder / "model.pt")


def load(folder: Path, base: nn.Module) -> nn.Module:
    return mto.restore(base, folder / "model.pt")
