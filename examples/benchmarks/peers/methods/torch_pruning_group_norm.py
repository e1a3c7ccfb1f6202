"""Torch-Pruning: its own recipe (DepGraph): groups are shrunk for two fifths of the epochs, the weakest go, the
model recovers."""

from pathlib import Path

import torch
import torch_pruning as tp  # pyright: ignore[reportMissingImports]
from torch import nn
from transformers import TrainerCallback

from peers.job import Job


class Shrinkage(TrainerCallback):
    def __init__(self, pruner: tp.pruner.GroupNormPruner):
        self.pruner = pruner

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.pruner.regularize(model)


def compress(model: nn.Module, job: Job) -> nn.Module:
    allowed = job.allowed(model)
    pruner = tp.pruner.GroupNormPruner(
        model,
        job.inputs,
        importance=tp.importance.GroupMagnitudeImportance(p=2, normalizer="max"),
        reg=5e-4,
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
    job.train(model, share=0.4, callbacks=[Shrinkage(pruner)])
    while job.cost(model) > allowed:
        pruner.step()
    job.train(model, share=0.6)
    return model


def save(model: nn.Module, folder: Path) -> None:
    model.zero_grad()
    torch.save(model, folder / "model.pt")


def load(folder: Path, base: nn.Module) -> nn.Module:
    return torch.load(folder / "model.pt", weights_only=False)
