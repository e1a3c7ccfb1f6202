"""A training that is to be stopped early goes on until its masks are final."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler
from transformers.utils import logging

from ...unofficial import calling

logger = logging.get_logger(__name__)


class TrainUntilFinal(TrainerCallback):
    """Takes back what any callback before it in the list says of stopping before step `final`."""

    def __init__(self, final: int) -> None:
        self.final = final

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if control.should_training_stop and state.global_step < self.final:
            logger.info(f"Step {state.global_step}: the training goes on until the mask is final in step {self.final}.")
            control.should_training_stop = False

    on_evaluate = on_epoch_end = on_save = on_log = on_step_end


def train_until_(final: int) -> None:
    """Let the Trainer whose callbacks are running train up to step `final`, whoever would stop it before."""
    handler = calling(CallbackHandler)
    if handler is not None:
        others = [callback for callback in handler.callbacks if not isinstance(callback, TrainUntilFinal)]
        handler.callbacks = [*others, TrainUntilFinal(final)]
