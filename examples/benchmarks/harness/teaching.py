"""What is not pruned is taught as well: the same teacher, and the same term of the loss, for every control."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from optimum.dendritic.distillation import Distillation, distill_
from optimum.dendritic.huggingface.trainer.teacher import match_trainer


class Teaching(TrainerCallback):
    """Adds the term of `DendriticCallback` with a teacher to the loss of a model that is not pruned.

    A student of fewer layers is compared with layers that are spread over the teacher: see `spread`.
    """

    def __init__(self, teacher: nn.Module, weight: float):
        self.teacher, self.weight = teacher, weight
        self.distillation: Distillation | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ):
        own, taught = _layers(model), _layers(self.teacher)
        if own is not None and taught is not None and own < taught:
            chosen = spread(taught, own)
            self.teacher.register_forward_hook(lambda module, inputs, outputs: _only(outputs, chosen))
        self.distillation = distill_(model, self.teacher, weight=self.weight)
        match_trainer(self.distillation, args)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        assert self.distillation is not None
        self.distillation.remove()


def spread(layers: int, fewer: int) -> list[int]:
    """Which of a teacher's hidden states, its embedding first, the states of a student of `fewer` layers are compared
    with (Jiao et al. 2020, TinyBERT, section 3.1: the uniform mapping).

    >>> spread(6, 2), spread(6, 1), spread(6, 4)
    ([0, 3, 6], [0, 6], [0, 1, 3, 4, 6])
    """
    return [layer * layers // fewer for layer in range(fewer + 1)]


def kept_layers(layers: int, fewer: int) -> list[int]:
    """Which layers a student of `fewer` of them starts with: as far apart as they can be, the first among them (Sanh et
    al. 2019, DistilBERT, section 3).

    >>> kept_layers(6, 2), kept_layers(6, 1), kept_layers(6, 3)
    ([0, 5], [0], [0, 2, 5])
    """
    return [layer * (layers - 1) // max(1, fewer - 1) for layer in range(fewer)]


def _layers(model: nn.Module) -> int | None:
    return model.config.to_dict().get("num_hidden_layers") if isinstance(model, PreTrainedModel) else None


def _only(outputs: Any, chosen: list[int]) -> Any:
    if outputs.get("hidden_states") is not None:
        outputs["hidden_states"] = tuple(outputs["hidden_states"][layer] for layer in chosen)
    return outputs
