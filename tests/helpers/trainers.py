"""A stock Trainer of a small image classifier, and what two trainings are compared by."""

from pathlib import Path

import torch
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainerCallback, TrainingArguments

from optimum.dendritic import DendriticCallback, DendriticConfig

STEPS, FREEZE = 20, 12

CONFIG = DendriticConfig(sparsity=0.5, updates=5, regrow=0.5)


def make_model() -> ResNetForImageClassification:
    torch.manual_seed(0)
    shape = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 4, "image_size": 16}
    return ResNetForImageClassification(ResNetConfig(layer_type="basic", **shape))


def make_dataset() -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    return [{"pixel_values": torch.randn(3, 16, 16, generator=generator), "labels": i % 4} for i in range(32)]


def make_trainer(folder: Path, callbacks: list | None = None, model: nn.Module | None = None, **changes) -> Trainer:
    settings = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    } | changes
    dataset = make_dataset()
    chosen = [DendriticCallback(CONFIG)] if callbacks is None else callbacks
    if "model_init" in settings:
        kwargs = {"model_init": settings.pop("model_init")}
    else:
        kwargs = {"model": model or make_model()}
    arguments = TrainingArguments(str(folder), **settings)
    return Trainer(args=arguments, train_dataset=dataset, eval_dataset=dataset, callbacks=chosen, **kwargs)


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


class StopAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.step
