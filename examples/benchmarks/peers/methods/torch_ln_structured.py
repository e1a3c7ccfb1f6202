"""`torch.nn.utils.prune`: the rows of least norm of every layer are masked, and the rest recovers."""

from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import prune

from peers.job import Job


def compress(model: nn.Module, job: Job) -> nn.Module:
    ends = job.ends(model)
    layers = [layer for layer in job.targets(model) if layer not in ends]
    for layer in layers:
        prune.ln_structured(layer, "weight", amount=job.level, n=2, dim=0)
    job.train(model)
    for layer in layers:
        prune.remove(layer, "weight")
    return model


def save(model: nn.Module, folder: Path) -> None:
    torch.save(model.state_dict(), folder / "model.pt")


def load(folder: Path, base: nn.Module) -> nn.Module:
    base.load_state_dict(torch.load(folder / "model.pt"))
    return base
