"""The runs of the MNIST table: what each method trains, on which data, by which recipe, and how a model is scored."""

import argparse
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from harness.runs import environment
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    AutoModelForImageClassification,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from convnet import ConvNetConfig, ConvNetForImageClassification  # noqa: E402
from optimum.dendritic import DendriticCallback, DendriticConfig  # noqa: E402
from optimum.dendritic.huggingface.card.provenance import Data, note_evaluation  # noqa: E402
from optimum.dendritic.huggingface.card.write import write_card  # noqa: E402

PRUNED = {  # method -> what it changes in DendriticConfig
    "dendritic": {"importance": "dendritic"},
    "dendritic-macs": {"importance": "dendritic", "budget": "macs"},
    "magnitude": {"importance": "magnitude"},
    "random": {"importance": "random"},
}
METHODS = ("dense", *PRUNED, "smaller-dense")
TARGETS = ("conv1", "conv2", "linear", "classifier")  # what the sparsity is a fraction of; the ten outputs always stay
MEAN, STD = 0.1307, 0.3081


@dataclass(frozen=True)
class Run:
    """One model of the table."""

    method: str
    sparsity: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}-{self.sparsity:g}-seed{self.seed}"


class Pixels(Dataset):
    """Images and labels in memory, served a whole batch at a time, so that loading takes no time worth mentioning."""

    def __init__(self, images: Tensor, labels: Tensor):
        self.images, self.labels = images, labels  # uint8 (samples, 28, 28); int64 (samples,)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        return {"pixel_values": normalised(self.images[indices]), "labels": self.labels[indices]}


def as_it_is(batch: Any) -> Any:
    """The collator: `Pixels` makes whole batches."""
    return batch


def normalised(images: Tensor) -> Tensor:
    return ((images.float() / 255 - MEAN) / STD).unsqueeze(1)


def load_pixels(dataset: str, split: str) -> Pixels:
    columns = load_dataset(dataset, split=split).with_format("numpy")[:]
    return Pixels(torch.from_numpy(np.stack(columns["image"])), torch.from_numpy(columns["label"]))


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def convnet_config(conv_channels: tuple[int, int] = (32, 64), hidden_size: int = 128) -> ConvNetConfig:
    """Less dropout than in the classic example, because training is short."""
    return ConvNetConfig(
        conv_channels=conv_channels, hidden_size=hidden_size, feature_dropout=0.1, classifier_dropout=0.25
    )


def narrower(sparsity: float) -> ConvNetConfig:
    """The widest network, all widths scaled alike, of no more parameters than pruning to `sparsity` leaves."""
    full = ConvNetForImageClassification(convnet_config())
    allowed = parameters(full) - sparsity * sum(parameters(full.get_submodule(name)) for name in TARGETS)
    for hidden in range(full.config.hidden_size, 0, -1):
        scale = hidden / full.config.hidden_size
        first, second = (max(1, round(width * scale)) for width in full.config.conv_channels)
        config = convnet_config((first, second), hidden)
        if parameters(ConvNetForImageClassification(config)) <= allowed:
            return config
    raise ValueError(f"No network is as small as sparsity {sparsity} asks for.")


def train_one(run: Run, args: argparse.Namespace, train: Pixels, test: Pixels, folder: Path) -> dict:
    """Train in a stock Trainer, save, and score the model that plain `from_pretrained` gives back."""
    set_seed(run.seed)
    config = narrower(run.sparsity) if run.method == "smaller-dense" else convnet_config()
    model = ConvNetForImageClassification(config)
    in_channels_last(model)  # in place
    callbacks: list[TrainerCallback] = []
    pruning = None
    if run.method in PRUNED:
        changes = {
            "seed": run.seed,
            "target_modules": TARGETS,
            "regrow": args.regrow,
            **PRUNED[run.method],
        }
        pruning = DendriticConfig(sparsity=run.sparsity, **changes)
        callbacks = [DendriticCallback(pruning)]
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=args.epochs,
            per_device_train_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            warmup_steps=0.1,
            weight_decay=0.01,
            bf16=args.bf16,
            use_cpu=not torch.cuda.is_available(),
            seed=run.seed,
            save_strategy="no",
            logging_steps=0.02,
            report_to="none",
            remove_unused_columns=False,
            disable_tqdm=True,
        ),
        train_dataset=train,
        data_collator=as_it_is,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    trainer.save_model()
    scored = score(folder, test)
    if pruning is not None:  # the model, as it was trained, knows its history; cards.py adds the costs
        local = Path(args.dataset).exists()
        data = Data(Path(args.dataset).name if local else args.dataset, not local, split="test", samples=len(test))
        note_evaluation(model, {"accuracy": scored["accuracy"]}, step=trainer.state.global_step, data=data)
        write_card(model, folder, measuring=False)
    return {
        **asdict(run),
        "recipe": recipe(args),
        "pruning": None if pruning is None else pruning.to_dict(),
        "train_seconds": seconds,
        "samples": [len(train), len(test)],
        **scored,
        "environment": environment(),
    }


def load_model(folder: Path, channels_last: bool) -> nn.Module:
    """What any user loads; the memory layout does not change values, and on a CPU it is the faster one."""
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    return in_channels_last(model) if channels_last else model


def in_channels_last(model: nn.Module) -> nn.Module:
    return model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def score(folder: Path, test: Pixels) -> dict:
    """Accuracy in fp32 and size of the saved model, in all and by layer."""
    model = load_model(folder, channels_last=True)
    correct = 0
    with torch.inference_mode():
        for images, labels in zip(test.images.split(100), test.labels.split(100), strict=True):
            correct += int((model(normalised(images)).logits.argmax(-1) == labels).sum())
    layers = {name: parameters(model.get_submodule(name)) for name in TARGETS}
    return {"accuracy": correct / len(test), "parameters": parameters(model), "layer_parameters": layers}


def recipe(args: argparse.Namespace) -> dict:
    names = ("epochs", "batch_size", "learning_rate", "bf16", "regrow", "max_train_samples")
    return {name: getattr(args, name) for name in names}
