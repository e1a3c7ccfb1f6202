"""Measured tables on disk, in the user's cache folder, so that the same model is timed once on a machine."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from huggingface_hub import cached_assets_path
from torch import Tensor, nn
from transformers.utils import logging

from ..efficiency.conditions import describe
from ..errors import CheckpointError
from ..layout.records import Group
from ..layout.strict_json import read
from ..layout.times import Times
from ..nn import DendriticLayer
from .timed_runs import Inputs

logger = logging.get_logger(__name__)

FORMAT = 2


def folder() -> Path:
    """Where the tables are kept: among the assets of the Hugging Face cache, which `HF_ASSETS_CACHE` moves."""
    return cached_assets_path("optimum-dendritic", namespace="times")


def key_of(model: nn.Module, layers: Mapping[str, DendriticLayer], groups: Sequence[Group], inputs: Inputs) -> str:
    """All that a table depends on: the device, the dtype, the threads, the versions, the inputs' shapes, the model's
    shapes and memory formats, and what of it may go."""
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    batch = max((shape[0] for shape in shapes.values() if shape), default=1)
    context = describe(model, threads=torch.get_num_threads(), batch_sizes=(batch,), input_shapes=shapes)
    masks = {name: tuple(layer.dendrite_mask.shape) for name, layer in layers.items()}
    parts = {name: (type(module).__name__, module.extra_repr()) for name, module in model.named_modules()}
    about = {
        "format": FORMAT,
        "context": dataclasses.asdict(context),
        "model": parts,
        "parameters": {n: (tuple(p.shape), p.stride(), str(p.dtype)) for n, p in model.named_parameters()},
        "masks": masks,
        "groups": [dataclasses.asdict(group) for group in groups],
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def cached(key: str, measured: Callable[[], Times]) -> Times:
    """The table of this key, measured unless it is on disk; one that cannot be read is measured again, and one that
    cannot be written is used all the same."""
    try:
        file = folder() / f"{key}.json"
        if file.is_file():
            times = read(Times, json.loads(file.read_text("utf-8")), str(file))
            logger.info(f"Times of this model on this machine are read from {file}.")
            return times
    except (CheckpointError, OSError, ValueError, RecursionError) as error:
        logger.warning(f"A table of times cannot be read, and is measured again: {error}")
    times = measured()
    try:
        file = folder() / f"{key}.json"
        part = file.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(dataclasses.asdict(times)), "utf-8")
        part.replace(file)
    except OSError as error:
        logger.info(f"The table of times is not kept: {error}")
    return times
