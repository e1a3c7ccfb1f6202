"""The teacher of a Trainer's model, and how its term of the loss is scaled as the Trainer scales its own."""

import copy
import os
from contextlib import nullcontext

import torch
from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from ...config import DendriticConfig
from ...distillation import Distillation, distill_, distill_itself_, distillation_of
from ...distributed.collectives import from_first_rank_
from ...errors import invalid
from ...sizes import Narrowed
from ...state import Source, base_of, layout_of, source_named
from ..checkpoint.auto_class import load

Teacher = nn.Module | str | os.PathLike[str]


def teacher_for(model: nn.Module, teacher: Teacher | None) -> nn.Module:
    """The teacher itself, the one in a folder or on the Hub, or a copy of `model`, which is not injected yet.

    Raises:
        DendriticError: there is no dense model to copy, since `model` is injected or packed already.
    """
    if isinstance(teacher, nn.Module):
        return teacher
    if teacher is not None:
        return load(os.fspath(teacher))
    if layout_of(model) is not None:
        rule = "is injected or packed already, so there is no dense model to learn from"
        raise invalid("model", type(model).__name__, rule, "Pass DendriticCallback(config, teacher=...).")
    return copy.deepcopy(model)


def teach_(model: nn.Module, teacher: nn.Module | None, config: DendriticConfig) -> None:
    """Let the teacher teach the model, if there is one, or the largest of its sizes the smaller ones."""
    if teacher is not None:
        assert config.distillation is not None
        distill_(model, teacher, weight=config.distillation)
    elif config.largest_teaches:
        distill_itself_(model)


def teach_in_step_(model: nn.Module, *, scores: bool, size: Narrowed | None) -> None:
    """Say who teaches in a step: a teacher wherever nothing is scored, or the largest size a smaller one.

    Args:
        size: what makes the model the smaller size that the step has; None in a step of the largest.
    """
    distillation = distillation_of(model)
    if distillation is None:
        return
    if not distillation.itself:
        distillation.active = not scores
        return
    distillation.active = size is not None
    distillation.around = nullcontext if size is None else size.whole


def name_of(model: nn.Module, teacher: Teacher | None) -> Source | None:
    """The name to publish of the teacher of `model`; None if it does not have one."""
    if teacher is None:
        return base_of(model)
    if isinstance(teacher, nn.Module):
        return source_named(teacher.name_or_path) if isinstance(teacher, PreTrainedModel) else None
    return source_named(os.fspath(teacher))


def match_trainer(distillation: Distillation, args: TrainingArguments) -> None:
    """Let the teacher compute, and the term be scaled, as the Trainer does with the model's own loss. Every rank has
    the teacher of rank 0, as it has its model.

    Raises:
        DendriticError: the Trainer keeps the labels from the model.
    """
    if args.label_smoothing_factor:
        rule = "takes the labels away from the model, so that it has no loss to distil beside"
        remedy = "Set label_smoothing_factor=0 (a teacher's soft targets smooth already), or distillation=0."
        raise invalid("label_smoothing_factor", args.label_smoothing_factor, rule, remedy)
    distillation.autocast = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    processes = args.world_size if args.average_tokens_across_devices else 1
    distillation.shares = args.gradient_accumulation_steps * processes
    if distillation.itself:
        return
    teacher = distillation.teacher.to(args.device)
    from_first_rank_([*teacher.parameters(), *teacher.buffers()])
