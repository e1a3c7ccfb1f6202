"""What a result table has to say about its task; everything else is shared."""

import argparse
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from .metric import ACCURACY, Metric
from .runs import Run


@dataclass(frozen=True)
class Score:
    """How good a saved model is on the validation data.

    Attributes:
        value: The metric of the task.
        examples: The metric of each validation example, in order, whose mean is `value`; "0110…" where each is 0 or 1.
        extras: What else to keep with the run, JSON-ready.
    """

    value: float
    examples: str | list[float]
    extras: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Card:
    """What a card says about its task; every text is a clause or a sentence of Markdown.

    Attributes:
        script: The file name of the task.
        scope: What a level is a share of: the `"targets"` or the whole `"model"`.
        tolerances: For each level the loss against dense that the card claims to stay within.
        latencies: For each level the share of dense's time that the card claims to stay within; 1 where none is given.
        augmented: How the samples of the last stage are changed, as a clause from its comma on.
        selects: Options, also in the recipe, that the time and render phases need.
    """

    script: str
    title: str
    description: str
    pipeline_tag: str
    dataset_id: str
    metric_id: str
    budget: str
    tolerances: dict[float, float]
    base: str
    second: str
    smaller: str
    optimizer: str
    targets: str
    selection: str
    measure: str = "Accuracy"
    unit_of_examples: str = "sentences"
    shape: str = ""
    augmented: str = ""
    scope: str = "targets"
    selects: tuple[str, ...] = ()
    latencies: dict[float, float] = field(default_factory=dict)

    def texts(self) -> dict[str, str]:
        """The fields that the template names."""
        return {name: value for name, value in vars(self).items() if isinstance(value, str)} | {
            "budget": {"params": "parameters", "macs": "MACs"}[self.budget]
        }


class Task(ABC):
    """A model, its data and its recipe. The last stage is what every method adds, those before it make the base of
    a seed: one, where nothing else is said.

    Attributes:
        metric: What `score` measures.
        default_levels: The fractions of the budget that the target modules lose.
        default_output_dir: Where the runs lie.
        default_card: Where the card is written.
        later: What `recipe` names and no base depends on, so that one base serves every last stage.
        shrinkage: How strongly groups shrink before they are pruned, where they do; DepGraph's own strength.
        pack_at_freeze: Whether the recovery trains the packed model.
        traced_samples: How many samples the callback traces with; where times are counted, those of so many.
    """

    metric: Metric = ACCURACY
    default_levels: tuple[float, ...]
    default_output_dir: str
    default_card: str
    later: tuple[str, ...] = ("epochs1", "learning_rate1", "distillation")
    shrinkage: float = 5e-4
    pack_at_freeze: bool = False
    traced_samples: int = 1

    def __init__(self, args: argparse.Namespace):
        self.args = args

    @staticmethod
    @abstractmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        """Options of this task alone; those that decide a result are named by `recipe`."""

    @abstractmethod
    def recipe(self) -> dict[str, Any]:
        """Everything that decides a result but method, level, seed and variant. JSON-ready."""

    def base_recipe(self, recipe: dict[str, Any]) -> dict[str, Any]:
        """What of `recipe` decides a base."""
        return {name: value for name, value in recipe.items() if name not in self.later}

    @abstractmethod
    def stages(self) -> tuple[dict[str, Any], ...]:
        """`TrainingArguments` of the base's training, or of its cycles, and of what follows it."""

    @abstractmethod
    def fresh(self) -> nn.Module:
        """A model to make a base of. The random state is seeded."""

    @abstractmethod
    def load(self, folder: Path) -> nn.Module:
        """The saved model as any user loads it, in fp32 and evaluation mode."""

    @abstractmethod
    def smaller(self, level: float, base: Path) -> tuple[nn.Module, bool]:
        """A dense model of no more than the budget that `level` leaves, and whether a base's stages are still due."""

    @abstractmethod
    def train_data(self, stage: int) -> tuple[Dataset, Any]:
        """Samples of a stage and their collator."""

    @abstractmethod
    def score(self, model: nn.Module) -> Score:
        """Of the model on the validation data, in fp32."""

    @abstractmethod
    def example_inputs(self) -> dict[str, Tensor]:
        """One batch as it comes in use: MACs, wiring and latencies are those of these shapes."""

    def control(self) -> dict[str, Any]:
        """`TrainingArguments` of the last stage of a second dense control, whose learning rate is its own: what shrinks
        needs larger steps than what is finished."""
        return {}

    @abstractmethod
    def card(self) -> Card:
        """What the card says about this task."""

    def extra(self, runs: list[dict[str, Any]]) -> str:
        """A section of its own for the card, from the runs."""
        return ""

    def start(self, run: Run) -> Path | None:
        """A model that the first stage of this base has made already, if there is one."""
        return None

    def pruning(self, importance: str = "dendritic") -> dict[str, Any]:
        """Fields of `DendriticConfig` that this task sets, where it ranks by this importance."""
        return {}

    def teacher(self, run: Run) -> Run | None:
        """Whose model teaches in the last stage of `run`, if this task distils; None: the base of its seed."""
        return None

    def optimizer(self, stage: int) -> tuple[type[torch.optim.Optimizer], dict[str, Any]] | None:
        """Class and arguments, but for the learning rate, of an optimizer that `TrainingArguments` cannot name."""
        return None

    def averaging(self, stage: int) -> float | None:
        """Decay of the running average of the weights that this stage of a base ends with; None: the weights."""
        return None

    def soft_labels(self, stage: int, model: nn.Module) -> Tensor | None:
        """Probabilities `(samples, classes)` in place of the labels of this stage of a base, from what came before it.

        The training then has the cross-entropy to them; the samples of `train_data` have `labels` to replace.
        """
        return None

    def processing(self) -> Any:
        """The tokenizer or image processor that is saved beside every model, if any."""
        return None

    def trained_form(self, model: nn.Module) -> nn.Module:
        """The model in the memory layout that trains fastest."""
        return model

    def samples(self) -> dict[str, int]:
        """Number of samples of each split, for the card."""
        return {}
