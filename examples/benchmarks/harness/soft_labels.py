"""Labels that are probabilities: what an earlier model says of each sample, in part or in whole."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from .images import Augmented, Moved
from .task import Task


def soft_labels(task: Task, stage: int, model: nn.Module, folder: Path) -> Tensor | None:
    """Those of the task, made once: a training that is resumed has those that it began with."""
    path = folder / f"soft_labels{stage}.npy"
    if not path.exists() and (made := task.soft_labels(stage, model)) is not None:
        np.save(path, made.numpy())
    return torch.from_numpy(np.load(path)) if path.exists() else None


def relabel_(dataset: Dataset, labels: Tensor) -> None:
    """Give the samples other labels."""
    assert isinstance(dataset, Augmented | Moved)
    dataset.labels = labels


def cross_entropy(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """To the probabilities of each sample: a plain mean, since no batch here is accumulated of several."""
    return nn.functional.cross_entropy(outputs.logits.float(), labels)
