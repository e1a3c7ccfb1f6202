"""Checks that a resumed run continues the one before, and a correction of where the Trainer ends it."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from ...config import DendriticConfig
from ...errors import CheckpointError, invalid
from ...nn import DendriticGroup
from ...state import gates_in, layers_in, layout_of
from ...train_steps import Update
from ...unofficial import calling, replace_method_
from ..checkpoint.tensors import check_mask
from .early_packing import become_packed_
from .last_checkpoint import check_checksums, first

logger = logging.get_logger(__name__)


def saved_attributes(name: str, config: DendriticConfig, state: TrainerState) -> dict[str, Any]:
    """The callback's attributes in the checkpoint that `state` resumes; empty for a run that starts.

    Args:
        name: the name of the callback's class, under which the Trainer saves its attributes.

    Raises:
        DendriticError: the checkpoint was written without the callback, or with another config.
    """
    if not state.global_step:
        return {}
    saved = first(state.stateful_callbacks.get(name) if isinstance(state.stateful_callbacks, dict) else None)
    if saved is None:
        rule = f"step {state.global_step} was reached without {name}, so it has neither masks nor scores"
        remedy = "Load its model with from_pretrained and start a new run, without resume_from_checkpoint."
        raise invalid("resume_from_checkpoint", f"checkpoint-{state.global_step}", rule, remedy)
    was, now = DendriticConfig.from_dict(saved["args"]["config"]).to_dict(), config.to_dict()
    changed = {field: value for field, value in now.items() if value != was[field]}
    if changed:
        former = {field: was[field] for field in changed}
        rule = f"the run up to step {state.global_step} had {former}"
        raise invalid("config", changed, rule, "Resume with the same config, or start a new run from the dense model.")
    return saved["attributes"]


def planned_steps(notes: dict[str, Any], state: TrainerState) -> int:
    """The `max_steps` that the masks' schedule is made for: those that the run began with, however far it now goes."""
    if state.max_steps == 0:
        raise invalid("max_steps", 0, "leaves nothing to train", "Set num_train_epochs or max_steps above 0.")
    steps = notes.get("max_steps") or state.max_steps
    if type(steps) is not int or steps < 1:
        raise invalid(
            "trainer_state.max_steps", steps, "must be a number of steps", "Use another checkpoint.", CheckpointError
        )
    return steps


def check_length(steps: int, plan: dict[int, Update], state: TrainerState, config: DendriticConfig) -> None:
    """Check that a run does not end before its mask is final; warn if it has room for few updates, or if a resumed run
    is longer or shorter than planned, which changes its recovery alone.

    Raises:
        DendriticError: the run would end before its mask is final.
    """
    if 1 < len(plan) < config.updates:  # update_plan tells of a single one
        logger.warning(
            f"max_steps = {steps} leaves room for {len(plan)} of {config.updates} mask updates between start = "
            f"{config.start} and end = {config.end}. Train longer for better accuracy."
        )
    if not plan or steps == state.max_steps:
        return
    if state.max_steps < max(plan):
        rule = f"ends before the mask of the resumed run is final, at step {max(plan)} of {steps}"
        raise invalid("max_steps", state.max_steps, rule, "Train longer, or start a new run.")
    logger.warning(
        f"The run began with max_steps = {steps} and is resumed with {state.max_steps}: the masks keep their schedule, "
        f"final at step {max(plan)}, and the recovery after it is as long as what is left."
    )


class SkipStepAfterLast(TrainerCallback):
    """Undoes the step that the Trainer takes beyond the last one when it resumes a run that was killed at its end.

    (The Trainer checks whether to stop only after a step, unless the last one ended an epoch.) This callback runs after
    all others, so that nothing is saved, either: the checkpoint of the last step exists already.
    """

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        if state.global_step >= state.max_steps:
            self.values = {name: tensor.detach().clone() for name, tensor in _tensors(model)}

    @torch.no_grad()
    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        for name, tensor in _tensors(model) if self.values else ():
            tensor.copy_(self.values[name])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.values:
            state.global_step = state.max_steps
            control.should_log = control.should_evaluate = control.should_save = False

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.values:
            control.should_log = control.should_evaluate = control.should_save = False

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.values = {}


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def attach_resume_checks() -> None:
    """Let the Trainer whose callbacks are running check the checksums of a checkpoint before it loads it, and restore
    what forward passes had written into the config (`problem_type`), for a run that has none left to do."""
    from transformers import Trainer  # here, since it takes its time and every Trainer has brought it already

    trainer = calling(Trainer)
    if trainer is not None and "_load_from_checkpoint" not in vars(trainer):
        replace_method_(trainer, "_load_from_checkpoint", _load)


def _load(stock: Any, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
    check_checksums(Path(resume_from_checkpoint))
    become_packed_(stock.__self__.model, Path(resume_from_checkpoint))
    stock(resume_from_checkpoint, model)
    config, file = stock.__self__.model.__dict__.get("config"), Path(resume_from_checkpoint, "config.json")
    if isinstance(config, PreTrainedConfig) and file.is_file():
        saved = json.loads(file.read_text("utf-8")).get("problem_type")
        config.problem_type = config.problem_type or saved


def refuse_second(kind: type[TrainerCallback]) -> None:
    """Refuse two callbacks of a kind in the Trainer whose callbacks are running: each would prune in every step.

    Raises:
        DendriticError: there are several.
    """
    from transformers import Trainer

    trainer = calling(Trainer)
    callbacks = [] if trainer is None else trainer.callback_handler.callbacks
    count = sum(isinstance(callback, kind) for callback in callbacks)
    if count > 1:
        raise invalid("callbacks", f"{count} of {kind.__name__}", "a Trainer prunes by one", "Leave one of them.")


def refuse_other_masks(model: nn.Module) -> None:
    """Let `model.load_state_dict`, by which a Trainer resumes, refuse by name the masks of another config or of a
    packed model, and those that the weights beside them contradict."""
    model.register_load_state_dict_pre_hook(_check_masks)


def _check_masks(model: nn.Module, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
    layout, own = layout_of(model), model.state_dict()
    state_dict = {name.removeprefix(prefix): t for name, t in state_dict.items() if name.startswith(prefix)}
    masks = {name: mask for name, mask in state_dict.items() if name.endswith("dendrite_mask")}
    for name, mask in masks.items() if layout is not None else ():
        field, shape = f"checkpoint {name}", tuple(mask.shape)
        if layout is not None and layout.packed:
            remedy = "Build the Trainer anew, on the dense model, and resume there."
            raise invalid(field, shape, "is of a run before packing, but the model is packed", remedy, CheckpointError)
        if name not in own or own[name].shape != mask.shape:
            remedy = "Resume with the same config, or start a new run from the dense model."
            rule = "does not fit: the run had another config"
            raise invalid(field, shape, rule, remedy, CheckpointError)
    if layout is None or not masks:
        return
    for name, gates in gates_in(model, layout, layers_in(model, layout)).items():
        mask = state_dict.get(f"{name}.dendrite_mask")
        keys = {key: key if isinstance(gates, DendriticGroup) else f"{name}.{key}" for key in gates.segmented()}
        tensors = {key: state_dict[full] for key, full in keys.items() if full in state_dict}
        if mask is not None and len(tensors) == len(keys):
            check_mask(name, gates, mask, tensors)
