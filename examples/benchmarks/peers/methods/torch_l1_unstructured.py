"""`torch.nn.utils.prune`: single weights of least magnitude, of all layers together, are masked; the rest recovers."""

from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import prune

from peers.job import Job


def compress(model: nn.Module, job: Job) -> nn.Module:
    layers = job.targets(model)
    weights = [(layer, "weight") for layer in layers]
    prune.global_unstructured(weights, pruning_method=prune.L1Unstructured, amount=job.level)
    job.train(model)
    for layer in layers:
        prune.remove(layer, "weight")
    return model


def save(model: nn.Module, folder: Path) -> None:
    torch.save(model.state_dict(), folder / "model.pt")


def load(folder: Path, base: nn.Module) -> nn.Module:
    base.load_state_dict(torch.load(folder / "model.pt"))
    return base
