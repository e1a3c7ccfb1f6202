"""MNIST with a small convolutional network, several seeds: dendritic pruning against dense training and three controls.

    python examples/benchmarks/mnist.py base      # the dense models that all others start from
    python examples/benchmarks/mnist.py train
    python examples/benchmarks/mnist.py time      # the first seed, in turn with its dense model; wants a quiet machine
    python examples/benchmarks/mnist.py render    # model_cards/mnist-convnet.md, .json and figures

Every phase resumes, and processes with the same options share the work. `--dataset` is a Hub id or a folder with the
columns "image" and "label" and the splits "train" and "test". The images are decoded once, into `--output_dir`.
Budgeted by multiplications: `--methods dendritic --config budget=macs --variant macs`.
"""

import argparse
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from harness.budget import widest_within
from harness.cli import main
from harness.images import Moved, as_it_is, correct, decoded, normalised
from harness.task import Card, Score, Task
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import AutoModelForImageClassification

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from convnet import ConvNetConfig, ConvNetForImageClassification  # noqa: E402

MEAN, STD = torch.tensor([0.1307]), torch.tensor([0.3081])
DEGREES, PIXELS = 10, 2  # of the augmentation
TARGETS = ["conv1", "conv2", "linear", "classifier"]  # the ten outputs always stay
HIDDEN = 128


def convnet(hidden: int = HIDDEN) -> ConvNetForImageClassification:
    """All widths scaled alike; less dropout than in the classic example, because training is shorter."""
    channels = [max(1, round(width * hidden / HIDDEN)) for width in (32, 64)]
    return ConvNetForImageClassification(
        ConvNetConfig(
            conv_channels=(channels[0], channels[1]),
            hidden_size=hidden,
            feature_dropout=0.1,
            classifier_dropout=0.25,
        )
    )


class Mnist(Task):
    """Trained from scratch until it is flat, then for some epochs more by every method."""

    default_levels = (0.6, 0.8, 0.9, 0.95)
    default_output_dir = "runs/mnist"
    default_card = "model_cards/mnist-convnet.md"

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--dataset", default="ylecun/mnist")
        parser.add_argument("--epochs0", type=float, default=12, help="of the base")
        parser.add_argument("--epochs1", type=float, default=4, help="of every method, from the base")
        parser.add_argument("--learning_rate", type=float, default=2e-3)
        parser.add_argument("--learning_rate1", type=float, default=1e-3, help="of the epochs1")
        parser.add_argument("--distillation", type=float, default=1.0, help="from the base")
        parser.set_defaults(batch_size=128, large_batch=64)

    def recipe(self) -> dict[str, Any]:
        names = ("epochs0", "epochs1", "batch_size", "learning_rate", "learning_rate1", "distillation", "bf16")
        return {name: getattr(self.args, name) for name in (*names, "max_steps")}

    def stages(self) -> tuple[dict[str, Any], dict[str, Any]]:
        shared = {
            "per_device_train_batch_size": self.args.batch_size,
            "lr_scheduler_type": "linear",
            "warmup_steps": 0.1,
            "weight_decay": 0.01,
            "optim": "adamw_torch_fused",
            "bf16": self.args.bf16,
            "max_steps": self.args.max_steps or -1,
        }
        first = {"num_train_epochs": self.args.epochs0, "learning_rate": self.args.learning_rate}
        second = {"num_train_epochs": self.args.epochs1, "learning_rate": self.args.learning_rate1}
        return {**shared, **first}, {**shared, **second}

    def control(self) -> dict[str, Any]:
        return {"learning_rate": self.args.learning_rate1 / 10}

    def pruning(self, importance: str = "dendritic") -> dict[str, Any]:
        return {"target_modules": TARGETS, "distillation": self.args.distillation}

    def fresh(self) -> nn.Module:
        return convnet()

    def load(self, folder: Path) -> nn.Module:
        model = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
        return self.trained_form(model)

    def trained_form(self, model: nn.Module) -> nn.Module:
        return model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def smaller(self, level: float, base: Path) -> tuple[nn.Module, bool]:
        """The widest network within the parameters that pruning leaves, trained from scratch by both stages."""
        make = [lambda hidden=hidden: convnet(hidden) for hidden in range(HIDDEN - 1, 0, -1)]
        return widest_within(self, self.load(base), level, "params", make), True

    def card(self) -> Card:
        return Card(
            script="mnist.py",
            title="Dendritic pruning of a small convolutional network on MNIST",
            description=(
                "The CNN of the classic MNIST example (two convolutions, one linear layer, a classifier; 1.2 million "
                f"parameters), trained from scratch on 60,000 images, turned by up to {DEGREES} degrees and shifted by "
                f"up to {PIXELS} pixels at random. The 10,000 test images validate: no checkpoint is selected by them."
            ),
            pipeline_tag="image-classification",
            dataset_id="ylecun/mnist",
            metric_id="accuracy",
            budget="params",
            tolerances={0.6: 0.1, 0.8: 0.1, 0.9: 0.2, 0.95: 0.3},
            base=f"trained from scratch for {self.args.epochs0:g} epochs",
            second=f"{self.args.epochs1:g} epochs",
            smaller="all widths scaled alike, no more parameters than that level leaves; from scratch, both stages.",
            optimizer="AdamW, linear warm-up over 10 % of the steps, then linear decay",
            targets="all layers; the ten outputs stay",
            selection="The recipe of the base was chosen with one seed, by the accuracy on the test images.",
            unit_of_examples="images",
            shape=" of 28x28 pixels",
        )

    def train_data(self, stage: int) -> tuple[Dataset, Any]:
        images, labels = self._splits["train"]
        return Moved(images=images, labels=labels, mean=MEAN, std=STD, degrees=DEGREES, pixels=PIXELS), as_it_is

    def score(self, model: nn.Module) -> Score:
        images, labels = self._splits["validation"]
        hits = correct(model, normalised(images, MEAN, STD), labels)
        return Score(hits.count("1") / len(hits), hits)

    def example_inputs(self) -> dict[str, Tensor]:
        return {"pixel_values": normalised(self._splits["validation"][0][:64], MEAN, STD)}

    def samples(self) -> dict[str, int]:
        return {name: len(labels) for name, (_, labels) in self._splits.items()}

    @cached_property
    def _splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        folder = (self.args.output_dir or Path(self.default_output_dir)) / "data"
        return decoded(self.args.dataset, folder, validation="test", mode="L")


if __name__ == "__main__":
    main(Mnist, __doc__)
