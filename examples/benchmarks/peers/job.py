"""What a peer is given: the base of a table, its data, teacher and recipe, and how much may be left."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness.budget import TARGETS, WHOLE
from harness.runs import Run
from harness.sizes import sizes
from harness.task import Task
from harness.teaching import Teaching
from harness.training import pruning_config
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from optimum.dendritic.efficiency.batch import Batch
from optimum.dendritic.efficiency.macs import count_macs
from optimum.dendritic.efficiency.size import count_parameters
from optimum.dendritic.structure.targets import target_names


@dataclass(frozen=True)
class Job:
    """One run of one peer.

    Attributes:
        base: The folder of the dense model that it starts from, which teaches, too.
        level: The share of the budget that the target modules are to lose.
        scratch: Where a training may write.
    """

    task: Task
    base: Path
    level: float
    seed: int
    scratch: Path

    @property
    def inputs(self) -> dict[str, Tensor]:
        """One sample."""
        return {name: tensor[:1] for name, tensor in self.task.example_inputs().items()}

    @property
    def budget(self) -> str:
        """What the level is a share of: `"params"` or `"macs"`."""
        return self.task.card().budget

    def targets(self, model: nn.Module) -> list[nn.Module]:
        """The modules that the tables prune."""
        names = target_names(model, pruning_config(self.task, Run("dendritic", self.level, self.seed)))
        return [model.get_submodule(name) for name in names]

    def ends(self, model: nn.Module) -> list[nn.Module]:
        """Layers whose outputs stay: the classes, and of a BERT what writes to its residual stream. It is what the
        tables of these tasks leave, but for ResNet-20."""
        ends = ("classifier", "classifier.1", "attention.output.dense", "output.dense", "pooler.dense", "embeddings")
        return [module for name, module in model.named_modules() if name.endswith(ends)]

    def heads(self, model: nn.Module) -> dict[nn.Module, int]:
        """The heads of each query, key and value layer of a BERT."""
        ends = ("self.query", "self.key", "self.value")
        own = [module for name, module in model.named_modules() if name.endswith(ends)]
        return dict.fromkeys(own, model.config.num_attention_heads) if own else {}  # pyright: ignore

    def cost(self, model: nn.Module) -> int:
        """Parameters, or MACs of one sample, of the whole model."""
        if self.budget == "params":
            return count_parameters(model)
        training = model.training
        macs = count_macs(model.eval(), Batch.of(self.inputs))
        model.train(training)
        return macs

    def allowed(self, model: nn.Module) -> int:
        """What may be left of the dense `model`, so that its target modules lose the level."""
        targets = target_names(model, pruning_config(self.task, Run("dendritic", self.level, self.seed)))
        full = sizes(model, self.task.example_inputs(), targets)
        return int(full[WHOLE[self.budget]] - self.level * full[TARGETS[self.budget]])

    def batches(self, count: int) -> Iterator[dict[str, Tensor]]:
        """Training batches in a random order."""
        dataset, collator = self._data
        loader = DataLoader(dataset, self.task.args.batch_size, shuffle=True, collate_fn=collator)
        for _, batch in zip(range(count), loader, strict=False):
            yield batch

    def teacher(self) -> nn.Module | None:
        """The base, unless the recipe has no teacher."""
        return self.task.load(self.base) if self.task.args.distillation else None

    def train(
        self, model: nn.Module, share: float = 1.0, callbacks: Sequence[TrainerCallback] = (), taught: bool = True
    ) -> nn.Module:
        """The last stage of the recipe, with its teacher, or a share of its epochs as a cycle of their own."""
        last = len(self.task.stages()) - 1
        arguments = dict(self.task.stages()[last])
        arguments["num_train_epochs"] *= share
        arguments["max_steps"] = max(1, round(arguments["max_steps"] * share)) if arguments["max_steps"] > 0 else -1
        optimizer, rate = self.task.optimizer(last), {"lr": arguments["learning_rate"]}
        teacher = self.teacher() if taught else None
        teaching = [] if teacher is None else [Teaching(teacher, self.task.args.distillation)]
        dataset, collator = self._data
        trainer = Trainer(
            model=self.task.trained_form(model),  # pyright: ignore[reportArgumentType]
            args=TrainingArguments(
                output_dir=str(self.scratch),
                use_cpu=not torch.cuda.is_available(),
                seed=self.seed + 1000 * last + round(1000 * (1 - share)),  # no part draws the samples of another again
                save_strategy="no",
                logging_steps=0.1,
                report_to="none",
                remove_unused_columns=False,
                disable_tqdm=True,
                **arguments,
            ),
            train_dataset=dataset,
            data_collator=collator,
            callbacks=[*teaching, *callbacks],
            optimizer_cls_and_kwargs=None if optimizer is None else (optimizer[0], optimizer[1] | rate),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        assert trainer.model is not None
        return as_before(trainer.model)

    @property
    def _data(self) -> tuple[Dataset, Any]:
        return self.task.train_data(len(self.task.stages()) - 1)


def as_before(model: nn.Module) -> nn.Module:
    """The model without the autocast that a training puts around its forward, which a pickled model would keep."""
    original = model.__dict__.pop("_original_forward", None)
    if original is not None:
        del model.forward
        if getattr(original, "__func__", None) is not type(model).forward:  # a package had put its own there
            model.forward = original
    return model
