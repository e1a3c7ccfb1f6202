"""Packing at the freeze, while the training goes on: the optimizer's state shrinks with the parameters.

Entries of a parameter that are pruned are zero and stay zero, so an optimizer that treats each entry on its own does to
what is left what it would have done to it in the whole. That holds in one process that holds all of the model.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import ASGD, SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop, Rprop
from transformers import PreTrainedModel, TrainingArguments
from transformers.utils import logging

from ...compress import compress_
from ...errors import DendriticError, invalid
from ...layout.layout import Layout
from ...nn.base import moments
from ...nn.stock import stock_modules
from ...nn.surgery import swap
from ...sizes import entries_left
from ...state import injected_layout, layers_in, layout_of, set_layout
from ...undo import all_or_nothing
from ..checkpoint.build import put_in

logger = logging.get_logger(__name__)

OPTIMIZERS = (ASGD, SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop, Rprop)  # entry by entry


def pack_early_(
    model: nn.Module, inputs: Any, optimizer: Optimizer, args: TrainingArguments, wrapper: nn.Module
) -> bool:
    """Pack an injected model whose masks are final, and let the optimizer go on with what is left of its parameters.

    Returns:
        Whether that was done. Where it cannot work, model and optimizer are as they were, and the log says why.
    """
    fault = _fault(model, optimizer, args, wrapper)
    if fault:
        logger.warning(f"The model is packed at the end of the training, and not at the freeze: {fault}.")
        return False
    try:
        with torch.no_grad(), all_or_nothing() as notes:
            notes.note_modules(model)
            layout = injected_layout(model)
            entries = entries_left(model, layout, layers_in(model, layout))
            before = dict(model.named_parameters(remove_duplicate=False))
            compress_(model, inputs)
            moved = _moved(before, dict(model.named_parameters(remove_duplicate=False)), entries)
    except DendriticError as error:
        logger.warning(f"The model is packed at the end of the training, and not at the freeze: {error}")
        return False
    _follow_(optimizer, moved)
    logger.info("The model is packed; the rest of the training is that of the small model.")
    return True


def become_packed_(model: nn.Module, folder: Path) -> None:
    """Give an injected model the form of a checkpoint that was written after it was packed, so that it can be loaded.
    Any other model, and one whose checkpoint is not packed, stays as it is.

    Raises:
        CheckpointError: the checkpoint's layout does not fit the model.
    """
    file, present = folder / "config.json", layout_of(model)
    if present is None or present.packed or not isinstance(model, PreTrainedModel) or not file.is_file():
        return
    written = json.loads(file.read_text("utf-8")).get("quantization_config")
    if not isinstance(written, dict) or written.get("groups"):
        return
    layout = Layout.from_dict(written)
    if not layout.packed or layout.config != present.config:
        return
    with all_or_nothing() as notes:
        notes.note_modules(model)
        swap(model, stock_modules(model))
        put_in(model, layout)
        model.tie_weights()
        set_layout(model, layout)


def _fault(model: nn.Module, optimizer: Optimizer, args: TrainingArguments, wrapper: nn.Module) -> str:
    """Why packing early cannot work; empty where it can."""
    from accelerate.state import AcceleratorState  # here: only a Trainer needs accelerate
    from accelerate.utils import DistributedType

    state, inner = AcceleratorState(), vars(optimizer).get("optimizer", optimizer)
    layout = injected_layout(model)
    if state.num_processes > 1 or state.distributed_type != DistributedType.NO or args.n_gpu > 1:
        return "several processes or devices train it"
    if args.torch_compile:
        return "it is compiled"
    if type(inner) not in OPTIMIZERS:
        return f"{type(inner).__name__} may not treat each entry of a parameter on its own"
    if not isinstance(model, PreTrainedModel) or wrapper is not model:
        return "only a PreTrainedModel's checkpoints tell their form"
    if layout.config.native or layout.config.smaller:
        return "its config asks for native, for dormant or for sizes"
    return ""


Moved = dict[int, tuple[nn.Parameter | None, tuple[Tensor, ...]]]


def _moved(
    before: Mapping[str, nn.Parameter], after: Mapping[str, nn.Parameter], entries: Mapping[str, tuple[Tensor, ...]]
) -> Moved:
    """For each parameter that was, by identity, the one that holds what is left of it, None where nothing does, and
    which entries that is.

    Raises:
        DendriticError: what a parameter holds is not what should be left of it.
    """
    moved: Moved = {}
    for name, old in before.items():
        new, kept = after.get(name), entries.get(name, ())
        if new is old or id(old) in moved:
            continue
        if new is not None and not (new.shape == old.shape and torch.equal(new, old)):
            left = _taken(old, kept)
            if left.shape != new.shape or not torch.equal(left, new):
                rule = "it is not known which entries of it are left"
                raise invalid("parameter", name, rule, "Nothing has to be done")
        else:
            kept = ()
        moved[id(old)] = (new, kept)
    return moved


def _taken(tensor: Tensor, kept: tuple[Tensor, ...]) -> Tensor:
    for axis, index in enumerate(kept):
        tensor = tensor.index_select(axis, index.to(tensor.device))
    return tensor


def _like(parameter: Tensor, entries: Tensor) -> Tensor:
    """These entries in a tensor of their own, laid out as the parameter is: fused optimizers step through both."""
    return torch.empty_like(parameter, dtype=entries.dtype, device=entries.device).copy_(entries)


@torch.no_grad()
def _follow_(optimizer: Optimizer, moved: Moved) -> None:
    """Exchange the parameters of an optimizer, with what it remembers of each entry."""
    for group in optimizer.param_groups:
        followed: list[nn.Parameter] = []
        for old in group["params"]:
            new, kept = moved.get(id(old), (old, ()))
            if new is None:
                optimizer.state.pop(old, None)
                continue
            followed.append(new)
            if new is old or old not in optimizer.state:
                continue
            entrywise = {id(moment) for moment in moments(old, optimizer)}
            state = optimizer.state.pop(old)
            optimizer.state[new] = {
                k: _like(new, _taken(v, kept)) if id(v) in entrywise else v for k, v in state.items()
            }
        group["params"][:] = followed
