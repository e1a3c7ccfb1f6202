"""Torch-Pruning: groups of least Taylor importance, read from 50 batches, go at once, then the model recovers."""

from pathlib import Path

import torch
import torch_pruning as tp  # pyright: ignore[reportMissingImports]
from torch import nn

from peers.job import Job


def compress(model: nn.Module, job: Job) -> nn.Module:
    allowed = job.allowed(model)
    pruner = tp.pruner.BasePruner(
        model,
        job.inputs,
        importance=tp.importance.GroupTaylorImportance(),
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=400,
        ignored_layers=job.ends(model),
        num_heads=job.heads(model),
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=1.0,
        output_transform=lambda outputs: outputs.logits,
    )
    for batch in job.batches(50):
        model(**batch).loss.backward()
    while job.cost(model) > allowed:
        pruner.step()
    job.train(model)
    return model


def save(model: nn.Module, folder: Path) -> None:
    model.zero_grad()
    torch.save(model, folder / "model.pt")


def load(folder: Path, base: nn.Module) -> nn.Module:
    return torch.load(folder / "model.pt", weights_only=False)
