"""CIFAR-10 with ResNet-20 or a small ViT, several seeds: dendritic pruning against dense training and three controls.

    python examples/benchmarks/cifar10.py base --architecture resnet20      # the dense models where all others start
    python examples/benchmarks/cifar10.py train --architecture resnet20
    python examples/benchmarks/cifar10.py time --architecture resnet20      # wants a quiet machine
    python examples/benchmarks/cifar10.py render --architecture resnet20    # model_cards/resnet20-cifar10.md

Every phase resumes, and processes with the same options share the work. `--dataset` is a Hub id or a folder with the
columns "image" (or "img") and "label" and the splits "train" and "validation"; without the latter the last 5,000
training images are held out. The images are decoded once, into `--output_dir`.
An ablation: `--methods dendritic --config regrow=0.0 --variant no-regrow`.
"""

import argparse
import json
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from harness.budget import widest_within
from harness.cli import main
from harness.images import Augmented, as_it_is, correct, decoded, normalised, predicted
from harness.runs import Run
from harness.task import Card, Score, Task
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import AutoModelForImageClassification, PreTrainedModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from compact_vit import CompactViTConfig, CompactViTForImageClassification  # noqa: E402
from resnet20 import ResNet20Config, ResNet20ForImageClassification  # noqa: E402

MEAN, STD = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
PADDING = 4
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LABELS: dict[str, Any] = {
    "id2label": dict(enumerate(CLASSES)),
    "label2id": {name: place for place, name in enumerate(CLASSES)},
}
PRESETS: dict[str, dict[str, Any]] = {  # architecture -> defaults that suit it; the options override them
    "resnet20": {
        "levels": [0.5],
        "budget": "macs",
        "epochs0": 40,
        "epochs_again": 20,
        "epochs1": 5,
        "learning_rate": 0.2,
        "learning_rate_again": 0.1,
        "average": 0.999,
        "learning_rate1": 0.1,
        "warmup": 0.2,
    },
    "vit": {
        "levels": [0.5],
        "budget": "params",
        "epochs0": 30,
        "epochs1": 2,
        "learning_rate": 1e-3,
        "learning_rate1": 5e-4,
        "warmup": 0.1,
    },
}


def resnet(width: int = 16) -> PreTrainedModel:
    sizes = [width, 2 * width, 4 * width]
    return ResNet20ForImageClassification(ResNet20Config(embedding_size=width, hidden_sizes=sizes, **LABELS))


def vit(width: int = 96) -> PreTrainedModel:
    """Four layers of three heads, FFN twice as wide as the residual stream, behind a stem of convolutions."""
    config = CompactViTConfig(
        hidden_size=width,
        num_hidden_layers=4,
        num_attention_heads=3,
        intermediate_size=2 * width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **LABELS,
    )
    return CompactViTForImageClassification(config)


NARROWER = {"resnet20": (resnet, range(15, 0, -1)), "vit": (vit, range(93, 0, -3))}


class Cifar10(Task):
    """Trained from scratch for some epochs, then for more of them by every method."""

    default_levels = ()
    default_output_dir = "runs/cifar10-<architecture>"
    default_card = "model_cards/<architecture>-cifar10.md"
    later = ("epochs1", "learning_rate1", "budget", "distillation")

    def __init__(self, args: argparse.Namespace):
        super().__init__(args)
        preset = PRESETS[args.architecture]
        for name, value in preset.items():
            if getattr(args, name) in (None, []):
                setattr(args, name, value)
        self.default_output_dir = f"runs/cifar10-{args.architecture}"
        self.default_card = f"model_cards/{args.architecture}-cifar10.md"

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--dataset", default="uoft-cs/cifar10")
        parser.add_argument("--architecture", choices=PRESETS, default="resnet20")
        parser.add_argument("--epochs0", type=float, help="of the base")
        parser.add_argument("--epochs1", type=float, help="of every method, from the base")
        parser.add_argument("--learning_rate", type=float)
        parser.add_argument("--epochs_again", type=float, help="of a second cycle of the base, after a warm restart")
        parser.add_argument("--learning_rate_again", type=float, help="of that cycle")
        parser.add_argument("--average", type=float, help="decay of the running average that a base's weights become")
        parser.add_argument(
            "--taught",
            type=float,
            default=0.5,
            help="share that the predictions of the first cycle have in the labels of the second",
        )
        parser.add_argument("--start", type=Path, help="a model that the first cycle has made, with a run.json")
        parser.add_argument("--learning_rate1", type=float, help="of the epochs1")
        parser.add_argument("--warmup", type=float, help="share of the steps of a stage")
        parser.add_argument("--budget", choices=["params", "macs"])
        parser.add_argument("--distillation", type=float, default=1.0, help="from the base")
        parser.set_defaults(batch_size=128, large_batch=64)

    def recipe(self) -> dict[str, Any]:
        names = ("architecture", "epochs0", "epochs1", "batch_size", "learning_rate", "learning_rate1", "warmup")
        names += ("budget", "distillation", "bf16", "max_steps")
        names += ("epochs_again", "learning_rate_again", "taught") if self.args.epochs_again else ()
        names += ("average",) if self.args.average else ()
        return {name: getattr(self.args, name) for name in names}

    @property
    def _is_resnet(self) -> bool:
        return self.args.architecture == "resnet20"

    @property
    def _cycles(self) -> list[tuple[float, float]]:
        """Epochs and learning rate of each stage."""
        first, second = (self.args.epochs0, self.args.learning_rate), (self.args.epochs1, self.args.learning_rate1)
        again = (self.args.epochs_again, self.args.learning_rate_again)
        return [first, again, second] if self.args.epochs_again else [first, second]

    def start(self, run: Run) -> Path | None:
        """`--start`, where that is the model of this seed and of the first cycle as it is asked for.

        Raises:
            ValueError: it was trained otherwise.
        """
        if self.args.start is None:
            return None
        made = json.loads((self.args.start / "run.json").read_text())
        asked = {"epochs": self.args.epochs0, "lr": self.args.learning_rate, "batch": self.args.batch_size}
        if not self.args.epochs_again or any(made[name] != value for name, value in asked.items()):
            raise ValueError(f"{self.args.start} was trained with {made}; the first of two cycles has {asked}.")
        return self.args.start if made["seed"] == run.seed else None

    def stages(self) -> tuple[dict[str, Any], ...]:
        shared = {
            "per_device_train_batch_size": self.args.batch_size,
            "lr_scheduler_type": "linear",  # with a long warm-up: one cycle
            "warmup_steps": self.args.warmup,
            "weight_decay": 5e-4 if self._is_resnet else 0.05,
            "optim": "adamw_torch_fused",
            "max_grad_norm": 0.0 if self._is_resnet else 1.0,
            "bf16": self.args.bf16,
            "max_steps": self.args.max_steps or -1,
        }
        return tuple({**shared, "num_train_epochs": epochs, "learning_rate": rate} for epochs, rate in self._cycles)

    def optimizer(self, stage: int) -> tuple[type[torch.optim.Optimizer], dict[str, Any]] | None:
        if not self._is_resnet:
            return None
        return torch.optim.SGD, {"momentum": 0.9, "nesterov": True}

    def control(self) -> dict[str, Any]:
        return {"learning_rate": self.args.learning_rate1 / 10}

    def averaging(self, stage: int) -> float | None:
        return self.args.average

    def soft_labels(self, stage: int, model: nn.Module) -> Tensor | None:
        """In the second cycle, in part what the first one says of each image and its mirror image, softened."""
        if stage != 1 or not self.args.epochs_again or not self.args.taught:
            return None
        images, labels = self._splits["train"]
        seen = torch.cat([self._seen(model, part) for part in images.split(1000)])
        return torch.lerp(nn.functional.one_hot(labels, 10).float(), seen, self.args.taught)

    def _seen(self, model: nn.Module, images: Tensor) -> Tensor:
        views = [predicted(model, normalised(view, MEAN, STD)) for view in (images, images.flip(-1))]
        return torch.stack(views).mean(0)

    def pruning(self, importance: str = "dendritic") -> dict[str, Any]:
        """A long recovery: from scratch, what is kept has much to learn yet."""
        fields = {"budget": self.args.budget, "distillation": self.args.distillation, "end": 0.4}
        return {**fields, "units": "structured"}

    def fresh(self) -> nn.Module:
        return resnet() if self._is_resnet else vit()

    def load(self, folder: Path) -> nn.Module:
        model = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
        return self.trained_form(model) if self._is_resnet else model

    def trained_form(self, model: nn.Module) -> nn.Module:
        """What is fast on a CPU: there the backward pass of PyTorch's fused attention is slow in bf16."""
        if self._is_resnet:
            return model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        assert isinstance(model, PreTrainedModel)
        model.set_attn_implementation("eager")
        return model

    def smaller(self, level: float, base: Path) -> tuple[nn.Module, bool]:
        """The widest network, all widths scaled alike, within the budget of the whole model; trained by both stages."""
        make, widths = NARROWER[self.args.architecture]
        candidates = [lambda width=width: make(width) for width in widths]
        return widest_within(self, self.load(base), level, self.args.budget, candidates), True

    def card(self) -> Card:
        resnet20 = self._is_resnet
        cycles = " and, after a warm restart, ".join(f"{epochs:g}" for epochs, _ in self._cycles[:-1])
        model = (
            "ResNet-20 (He et al. 2016)"
            if resnet20
            else "A small ViT (4 layers, 96 wide, 3 heads, behind a stem of two 3x3 convolutions of stride 2)"
        )
        return Card(
            script="cifar10.py",
            title=f"Dendritic pruning of {'ResNet-20' if resnet20 else 'a small ViT'} on CIFAR-10",
            description=(
                f"{model}, trained from scratch on 45,000 of the 50,000 training images of CIFAR-10 with random crops "
                "and flips; the other 5,000 validate. Without a split of that name the last 5,000 are held out; "
                "results will differ as far as that draw does. The images of the copy that made this table are "
                "JPEG-compressed, so that published accuracies are not comparable."
            ),
            pipeline_tag="image-classification",
            dataset_id="uoft-cs/cifar10",
            metric_id="accuracy",
            budget=self.args.budget,
            tolerances={0.5: 0.0 if resnet20 else 1.0},
            base=f"trained from scratch for {cycles} epochs{self._bettered()}{self._one_base()}",
            second=f"{self.args.epochs1:g} epochs",
            smaller="all widths scaled alike, no more of the budget than that level "
            "leaves of the whole model; from scratch, through all stages.",
            optimizer=f"{'SGD with Nesterov momentum 0.9' if resnet20 else 'AdamW'}, linear warm-up, then linear decay",
            targets="all convolutions" if resnet20 else "all linear layers of the encoder and the patch embedding",
            selection=(
                "The teacher and `end` were chosen with one seed of ResNet-20, for dendritic pruning, by the accuracy "
                "on all validation images, the held-out part among them; every other method has them too."
            ),
            unit_of_examples="images",
            shape=" of 32x32 pixels",
            selects=("architecture",),
        )

    def _bettered(self) -> str:
        """How a base becomes better than its last weights."""
        again, average = self.args.epochs_again, self.args.average
        taught = self.args.taught if again else 0
        parts = [
            f"the labels of the last cycle are for {taught:.0%} what the first says of an image and its mirror image"
            if taught
            else "",
            f"its weights are their running average (decay {average:g})" if average else "",
        ]
        return "".join(f"; {part}" for part in parts if part)

    def _one_base(self) -> str:
        seed = self.args.base_seed
        return "" if seed is None else f"; the one of seed {seed} serves all seeds, whose last stages alone differ"

    def train_data(self, stage: int) -> tuple[Dataset, Any]:
        images, labels = self._splits["train"]
        return Augmented(
            images=images, labels=labels, mean=MEAN, std=STD, padding=PADDING, channels_last=self._is_resnet
        ), as_it_is

    def score(self, model: nn.Module) -> Score:
        images, labels = self._splits["validation"]
        hits = correct(model, normalised(images, MEAN, STD), labels)
        return Score(hits.count("1") / len(hits), hits)

    def example_inputs(self) -> dict[str, Tensor]:
        return {"pixel_values": normalised(self._splits["validation"][0][:64], MEAN, STD)}

    def samples(self) -> dict[str, int]:
        return {name: len(labels) for name, (_, labels) in self._splits.items()}

    def splits_of(self, name: str) -> tuple[Tensor, Tensor]:
        """Images and labels of a split."""
        return self._splits[name]

    @cached_property
    def _splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        return decoded(self.args.dataset, (self.args.output_dir or Path(self.default_output_dir)) / "data")


if __name__ == "__main__":
    main(Cifar10, __doc__)
