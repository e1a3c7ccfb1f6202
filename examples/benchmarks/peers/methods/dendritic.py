"""optimum-dendritic: pruned by its callback while it trains, and packed at the end."""

from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from optimum.dendritic import DendriticCallback, DendriticConfig
from peers.job import Job


def compress(model: nn.Module, job: Job) -> nn.Module:
    config = DendriticConfig(sparsity=job.level, seed=job.seed, **job.task.pruning())
    callback = DendriticCallback(config, teacher=job.teacher(), example_inputs=job.inputs)
    return job.train(model, callbacks=[callback], taught=False)


def save(model: PreTrainedModel, folder: Path) -> None:
    model.save_pretrained(folder)


def load(folder: Path, base: PreTrainedModel) -> nn.Module:
    return type(base).from_pretrained(folder)
