"""How good a model is after every epoch of its training, on the part of the data that choices are made by.

It is kept in the checkpoints, so that a resumed training has it too.
"""

import time
from contextlib import nullcontext
from typing import Any

from torch import nn
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .averaging import WeightAverage
from .runs import Run
from .statistics import for_choices, per_example
from .task import Task

KEPT = ("step", "epoch", "score", "seconds", "cpu_seconds")


class Progress(TrainerCallback):
    """Scores the model at the end of every epoch, writes a line, and notes the score in the state of the Trainer.

    Where its weights are averaged, the score is that of the average.

    The seconds of an epoch do not count the scoring, nor what a killed process did after its last checkpoint.
    """

    def __init__(self, task: Task, run: Run, average: WeightAverage | None = None):
        self.task, self.run, self.average = task, run, average

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        self._restart()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ):
        seconds, cpu_seconds = time.perf_counter() - self.start, time.process_time() - self.start_cpu
        with self.average.applied(model) if self.average else nullcontext():
            score = float(per_example(for_choices(self.task.score(model.eval()).examples)).mean())
        model.train()
        entry = {"score": score, "seconds": seconds, "cpu_seconds": cpu_seconds}
        state.log_history.append({"step": state.global_step, "epoch": state.epoch, **entry})
        tqdm.write(
            f"{self.run.name}: step {state.global_step:,} of {state.max_steps:,}, {self.task.metric.name} "
            f"{self.task.metric.write(self.task.metric.scale * score)}, {seconds:.0f} s"
        )
        self._restart()

    def _restart(self) -> None:
        self.start, self.start_cpu = time.perf_counter(), time.process_time()


def history(state: TrainerState) -> list[dict[str, float]]:
    """What `Progress` noted, epoch by epoch, also before the training was resumed."""
    return [{name: entry[name] for name in KEPT} for entry in state.log_history if "score" in entry]
