"""What the Trainer's console and reporters see: the order of its callbacks, and the progress of the compression."""

from dataclasses import dataclass, field
from typing import Any

from transformers import (
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import CallbackHandler

from ...schedules import PHASES, PRUNING, RECOVERY, WARMUP
from ...train_steps import Pruning, Update
from ...unofficial import calling
from .resume import SkipStepAfterLast


class LogLayerDensity(TrainerCallback):
    """Adds the density of each layer to what reporters log; it runs after the console, which it would flood."""

    def __init__(self) -> None:
        self.kept: dict[str, float] = {}  # the density of each layer, for the present log entry

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        if self.kept:
            _note({f"density/{name}": round(kept, 4) for name, kept in self.kept.items()}, logs, state)
            self.kept = {}


@dataclass
class Progress:
    """Adds the progress of the compression to the log and to the progress bar.

    Attributes:
        console: The Trainer's callbacks that print to the console.
        layers: The callback that logs the density of each layer.
    """

    console: list[TrainerCallback] = field(default_factory=list)
    layers: LogLayerDensity = field(default_factory=LogLayerDensity)

    def log(
        self, pruning: Pruning, regrown: int, plan: dict[int, Update], logs: dict[str, Any], state: TrainerState
    ) -> None:
        """Add sparsity, regrown segments and phase to a log entry, and to the progress bar."""
        step, sparsity = state.global_step, round(pruning.sparsity, 4)
        phase = RECOVERY if step >= max(plan) else PRUNING if step >= min(plan) else WARMUP
        _note({"sparsity": sparsity, "regrown": regrown, "phase": phase}, logs, state)
        self.layers.kept = pruning.density
        for console in self.console:
            if isinstance(console, ProgressCallback) and console.training_bar is not None:
                console.training_bar.set_postfix(sparsity=sparsity, phase=PHASES[phase])


def order_callbacks(callback: TrainerCallback) -> Progress:
    """Order the Trainer's callbacks: this one, the console, `LogLayerDensity`, everyone else, `SkipStepAfterLast`.

    Reporters (TensorBoard, W&B, …) read `logs` in list order and stand before user callbacks, which would hide our
    values from them. Where no Trainer is calling, the order stays as it was.
    """
    handler = calling(CallbackHandler)
    if handler is None:
        return Progress()
    ours = (callback, *(c for c in handler.callbacks if isinstance(c, LogLayerDensity | SkipStepAfterLast)))
    others = [c for c in handler.callbacks if c not in ours]
    progress = Progress([c for c in others if isinstance(c, ProgressCallback | PrinterCallback)])
    others = [c for c in others if c not in progress.console]
    # a new list: the caller iterates the old one
    handler.callbacks = [callback, *progress.console, progress.layers, *others, SkipStepAfterLast()]
    return progress


def _note(values: dict[str, Any], logs: dict[str, Any], state: TrainerState) -> None:
    logs.update(values)
    state.log_history[-1].update(values)  # the Trainer noted its own copy before it asked the callbacks
