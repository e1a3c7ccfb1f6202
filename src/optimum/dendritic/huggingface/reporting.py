"""What the Trainer's reporters see: the order of its callbacks, and the density of each layer."""

import sys
from typing import Any

from torch import nn
from transformers import (
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import CallbackHandler

from ..prune import pruning_of
from ..record import layout_of
from .resuming import NoStepTooMany


class LayerDensity(TrainerCallback):
    """Adds the density of each layer to what reporters log; stands behind the console, which it would flood."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        logs: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        layout = layout_of(model)
        if layout is not None and not layout.packed and "loss" in logs:
            density = {f"density/{name}": round(kept, 4) for name, kept in pruning_of(model).density.items()}
            logs.update(density)
            state.log_history[-1].update(density)


OURS = (LayerDensity, NoStepTooMany)


def stand_before_reporters(callback: TrainerCallback) -> list[TrainerCallback]:
    """Order the Trainer's callbacks: this one, the console, `LayerDensity`, everyone else, `NoStepTooMany`. Returns the
    console.

    Reporters (TensorBoard, W&B, …) read `logs` in list order and stand before user callbacks, which would hide our
    values from them. The Trainer hands its callbacks neither itself nor their list, so the list is found on the way
    back up to it, at `CallbackHandler.call_event`; where there is none, the order stays as it was.
    """
    frame = sys._getframe()
    while frame is not None and not isinstance(frame.f_locals.get("self"), CallbackHandler):
        frame = frame.f_back
    if frame is None:
        return []
    handler: CallbackHandler = frame.f_locals["self"]
    console: list[TrainerCallback] = [c for c in handler.callbacks if isinstance(c, ProgressCallback | PrinterCallback)]
    others = [c for c in handler.callbacks if c is not callback and c not in console and not isinstance(c, OURS)]
    handler.callbacks = [
        callback,
        *console,
        LayerDensity(),
        *others,
        NoStepTooMany(),
    ]  # a new list: the caller iterates the old one
    return console
