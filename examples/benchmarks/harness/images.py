"""Small labelled images in memory, served and augmented a whole batch at a time."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from torch import Tensor, nn
from torch.utils.data import Dataset

from .text import LABEL, column

IMAGE = ("image", "img")
HELD_OUT = 5000  # samples, of a dataset that has no validation split


def decoded(
    dataset: str, folder: Path, validation: str = "validation", mode: str = "RGB"
) -> dict[str, tuple[Tensor, Tensor]]:
    """The splits "train" and "validation": pixels uint8 `(samples, channels, height, width)` and labels `(samples,)`.

    Decoded once; `folder` keeps the arrays.

    Args:
        dataset: a Hub id or a folder that `load_dataset` reads.
        validation: its split that validates; where there is none of that name, the last images of "train" are held out.
        mode: of the images, in the terms of Pillow.
    """
    splits = {}
    for name in ("train", "validation"):
        paths = [folder / f"{name}-{what}.npy" for what in ("images", "labels")]
        if not all(path.exists() for path in paths):
            folder.mkdir(parents=True, exist_ok=True)
            table = _table(dataset, name, validation)
            images = np.stack([np.atleast_3d(image.convert(mode)) for image in column(table, IMAGE)])
            for path, array in zip(paths, (images.transpose(0, 3, 1, 2), np.array(column(table, LABEL))), strict=True):
                unfinished = path.with_suffix(".tmp.npy")
                np.save(unfinished, array)
                unfinished.replace(path)
        images, labels = (torch.from_numpy(np.load(path)) for path in paths)
        splits[name] = (images, labels)
    return splits


def _table(dataset: str, split: str, validation: str) -> Any:
    every = load_dataset(dataset)
    if validation in every:
        return every[validation if split == "validation" else split]
    train = every["train"]
    first = len(train) - HELD_OUT
    return train.select(range(first) if split == "train" else range(first, len(train)))


class Augmented(Dataset):
    """Random crops of the padded image, and random flips; `as_it_is` is the collator."""

    def __init__(self, images: Tensor, labels: Tensor, mean: Tensor, std: Tensor, padding: int, channels_last: bool):
        padded = nn.functional.pad(images, (padding,) * 4)
        self.rows = padded.permute(0, 2, 3, 1).contiguous()  # (samples, height, width, channels): a pixel is one copy
        self.labels, self.mean, self.std, self.padding = labels, mean, std, padding
        self.channels_last = channels_last

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        samples, size = torch.tensor(indices), self.rows.shape[1] - 2 * self.padding
        shifts = torch.randint(2 * self.padding + 1, (2, len(indices), 1))
        y, x = torch.arange(size) + shifts[0], torch.arange(size) + shifts[1]
        flipped = torch.rand(len(indices), 1) < 0.5
        x = torch.where(flipped, x.flip(1), x)
        pixels = self.rows[samples[:, None, None], y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)
        pixels = normalised(pixels, self.mean, self.std)
        return {"pixel_values": pixels if self.channels_last else pixels.contiguous(), "labels": self.labels[samples]}


class Moved(Dataset):
    """Images turned about their centre and shifted, by amounts drawn anew every time; `as_it_is` is the collator.

    Args:
        images: uint8 `(samples, channels, height, width)`.
        degrees: the largest angle.
        pixels: the largest shift along each axis.
    """

    def __init__(self, images: Tensor, labels: Tensor, mean: Tensor, std: Tensor, degrees: float, pixels: float):
        self.images, self.labels, self.mean, self.std = images, labels, mean, std
        self.radians, self.pixels = math.radians(degrees), pixels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        images = self.images[indices].float()
        angle, *shifts = torch.rand(3, len(indices)) * 2 - 1  # each in [-1, 1)
        cos, sin = torch.cos(angle * self.radians), torch.sin(angle * self.radians)
        x, y = (shift * 2 * self.pixels / size for shift, size in zip(shifts, images.shape[:1:-1], strict=True))
        places = torch.stack([cos, -sin, x, sin, cos, y], 1).view(-1, 2, 3)
        grid = nn.functional.affine_grid(places, list(images.shape), align_corners=False)
        moved = nn.functional.grid_sample(images, grid, align_corners=False)
        return {"pixel_values": normalised(moved, self.mean, self.std), "labels": self.labels[indices]}


def as_it_is(batch: Any) -> Any:
    """The collator of a dataset that makes whole batches."""
    return batch


def normalised(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Pixels in 0..255 `(batch, channels, height, width)` -> float, mean 0 and deviation 1 by channel."""
    return (images.float() / 255 - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)


@torch.inference_mode()
def correct(model: nn.Module, pixels: Tensor, labels: Tensor, batch_size: int = 100) -> str:
    """One character for each image, in order: 1 where the largest logit is that of its label."""
    hits = [
        (model(pixel_values=own).logits.argmax(-1) == truth).tolist()
        for own, truth in zip(pixels.split(batch_size), labels.split(batch_size), strict=True)
    ]
    return "".join("1" if hit else "0" for batch in hits for hit in batch)


@torch.inference_mode()
def predicted(model: nn.Module, pixels: Tensor, batch_size: int = 100, temperature: float = 2.0) -> Tensor:
    """Probabilities `(images, classes)`, softened by the temperature."""
    logits = [model.eval()(pixel_values=own).logits for own in pixels.split(batch_size)]
    return torch.softmax(torch.cat(logits) / temperature, -1)
