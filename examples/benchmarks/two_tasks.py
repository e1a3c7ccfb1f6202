"""What `allocation.py`, `dormant.py` and `int8.py` share: the tasks that they are about, and samples of these."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cifar10 import MEAN, STD, Cifar10
from harness.cli import add_training_options
from harness.images import normalised
from harness.task import Task
from sst2 import Sst2
from torch import Tensor

Sample = tuple[dict[str, Tensor], int]
TASKS: dict[str, Callable[[argparse.Namespace], Task]] = {"sst2": Sst2, "cifar10": Cifar10}
TITLES = {"sst2": "MiniLM on SST-2", "cifar10": "ResNet-20 on CIFAR-10"}
CHANGES: dict[str, dict[str, Any]] = {"sst2": {"units": ["heads", "neurons"]}, "cifar10": {}}  # to the table's config


def parsed(parser: argparse.ArgumentParser, card: str) -> tuple[argparse.Namespace, Task]:
    """The options of the command line, with those that all have and those of the task that it names, and that task.

    Args:
        card: the beginning of the name of the file in `model_cards/` that results go to.
    """
    parser.add_argument("task", choices=TASKS)
    add_training_options(parser)
    parser.add_argument("--output", type=Path, help=f"default: model_cards/{card}-<task>.json")
    known, _ = parser.parse_known_args()
    kind: Any = TASKS[known.task]
    kind.add_options(parser)
    args = parser.parse_args()
    task = kind(argparse.Namespace(**{"levels": [], **vars(args)}))
    args.output_dir = task.args.output_dir = args.output_dir or Path(task.default_output_dir)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    name = Path(task.default_output_dir).name if isinstance(task, Sst2) else args.task  # with the name of its recipe
    args.output = args.output or Path(f"model_cards/{card}-{name}.json")
    return args, task


def samples(task: Task) -> list[Sample]:
    """The validation samples, each as a batch of one, and their labels."""
    if isinstance(task, Cifar10):
        images, labels = task.splits_of("validation")
        pixels = normalised(images, MEAN, STD)
        return [({"pixel_values": image[None]}, int(label)) for image, label in zip(pixels, labels, strict=True)]
    assert isinstance(task, Sst2)
    split = task.splits["validation"]
    batches = [task.pad([split[i]]) for i in range(len(split))]
    return [(without_labels(batch), int(batch["labels"])) for batch in batches]


def calibration(task: Task, count: int, batches: int = 4) -> list[dict[str, Tensor]]:
    """So many labelled training samples, the same for everyone who asks for as many."""
    found: tuple[Any, Any] = task.train_data(len(task.stages()) - 1)
    dataset, collate = found
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:count].tolist()
    torch.manual_seed(0)  # of the augmentation
    parts = [order[start::batches] for start in range(batches)]
    return [
        collate(dataset.__getitems__(own) if isinstance(task, Cifar10) else [dataset[i] for i in own]) for own in parts
    ]


def without_labels(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name != "labels"}
