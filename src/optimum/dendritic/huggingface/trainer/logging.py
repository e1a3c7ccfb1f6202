"""What the Trainer's console and reporters see: the order of its callbacks, and how far the compression has come."""

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
from .resume import NoStepTooMany


class LayerDensity(TrainerCallback):
    """Adds the density of each layer to what reporters log; stands behind the console, which it would flood."""

    def __init__(self) -> None:
        self.kept: dict[str, float] = {}  # of the log entry at hand

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
    """Where to say how far the compression has come."""

    console: list[TrainerCallback] = field(default_factory=list)
    layers: LayerDensity = field(default_factory=LayerDensity)

    def tell(
        self, pruning: Pruning, regrown: int, plan: dict[int, Update], logs: dict[str, Any], state: TrainerState
    ) -> None:
        """Add to a log entry, for reporters, and to the progress bar."""
        step, sparsity = state.global_step, round(pruning.sparsity, 4)
        phase = RECOVERY if step >= max(plan) else PRUNING if step >= min(plan) else WARMUP
        _note({"sparsity": sparsity, "regrown": regrown, "phase": phase}, logs, state)
        self.layers.kept = pruning.density
        for console in self.console:
            if isinstance(console, ProgressCallback) and console.training_bar is not None:
                console.training_bar.set_postfix(sparsity=sparsity, phase=PHASES[phase])


def stand_before_reporters(callback: TrainerCallback) -> Progress:
    """Order the Trainer's callbacks: this one, the console, `LayerDensity`, everyone else, `NoStepTooMany`.

    Reporters (TensorBoard, W&B, …) read `logs` in list order and stand before user callbacks, which would hide our
    values from them. Where no Trainer is calling, the order stays as it was.
    """
    handler = calling(CallbackHandler)
    if handler is None:
        return Progress()
    ours = (callback, *(c for c in handler.callbacks if isinstance(c, LayerDensity | NoStepTooMany)))
    others = [c for c in handler.callbacks if c not in ours]
    progress = Progress([c for c in others if isinstance(c, ProgressCallback | PrinterCallback)])
    others = [c for c in others if c not in progress.console]
    # a new list: the caller iterates the old one
    handler.callbacks = [callback, *progress.console, progress.layers, *others, NoStepTooMany()]
    return progress


def _note(values: dict[str, Any], logs: dict[str, Any], state: TrainerState) -> None:
    logs.update(values)
    state.log_history[-1].update(values)  # the Trainer noted its own copy before it asked the callbacks
