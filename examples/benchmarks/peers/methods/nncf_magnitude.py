"""NNCF: single weights of least normalised magnitude, of all layers together, are masked, and the rest recovers."""

from pathlib import Path

import nncf
import torch
from torch import nn

from peers.job import Job


def compress(model: nn.Module, job: Job) -> nn.Module:
    mode = nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL
    model = nncf.prune(model, mode, ratio=job.level, examples_inputs=job.inputs)
    model = job.train(model)
    return nncf.strip(model, do_copy=False, strip_format=nncf.StripFormat.IN_PLACE)


def save(model: nn.Module, folder: Path) -> None:
    torch.save(model.state_dict(), folder / "model.pt")


def load(folder: Path, base: nn.Module) -> nn.Module:
    base.load_state_dict(torch.load(folder / "model.pt"))
    return base
