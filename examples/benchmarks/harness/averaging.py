"""The running average of a model's weights: what a training hands over where its last steps are still noisy."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

FILE = "average.safetensors"
WARMUP = 10  # steps: the average of a short training does not remember its start


class WeightAverage(TrainerCallback):
    """`average <- d * average + (1 - d) * weights` after every step, buffers too, and at the end into the model.

    `d = min(decay, (1 + step) / (10 + step))`. Every checkpoint has the average beside the weights, so that a resumed
    training ends as an uninterrupted one does.
    """

    def __init__(self, decay: float):
        self.decay = decay
        self.average: dict[str, Tensor] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ):
        if state.global_step:
            self.average = load_file(_checkpoint(args, state) / FILE, device=str(next(model.parameters()).device))
        else:
            self.average = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ):
        decay = min(self.decay, (1 + state.global_step) / (WARMUP + state.global_step))
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                self.average[name].lerp_(tensor, 1 - decay)
            else:
                self.average[name].copy_(tensor)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        tensors = {name: tensor.contiguous() for name, tensor in self.average.items()}
        save_file(tensors, _checkpoint(args, state) / FILE)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ):
        _copy(self.average, model)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Inside, `model` has the averaged weights; after it, its own."""
        own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        _copy(self.average, model)
        try:
            yield
        finally:
            _copy(own, model)


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    assert args.output_dir is not None
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


@torch.no_grad()
def _copy(tensors: dict[str, Tensor], model: nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        tensor.copy_(tensors[name])
