"""A Trainer's pushes: with the card of this package, retried, without the token, and with a warning if one fails.

The methods are replaced on the instance of the Trainer that is running, never on its class.
"""

import os
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from huggingface_hub import metadata_load, metadata_save
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from ...state import layout_of
from ...unofficial import calling, replace_method_
from ..card.write import write_card
from ..checkpoint.save import make_loadable
from ..hub.retry import summary, with_retries

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.get_logger(__name__)

IN_PROGRESS = """---
library_name: transformers
tags:
- dendritic
---

Training is in progress: this checkpoint is not packed yet. Loading it needs one import:

```python
import optimum.dendritic
```
"""


class Secret(str):
    """A token that is pickled as None. (`training_args.bin`, which every Trainer pushes, is a pickle of arguments, and
    the token is one of them.)"""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return type(None), ()

    def __copy__(self) -> "Secret":
        return self

    def __deepcopy__(self, memo: Any) -> "Secret":
        return self


class HubPushes(TrainerCallback):
    """Handles the pushes of one Trainer."""

    def __init__(self, trainer: "Trainer") -> None:
        self.trainer = trainer
        self.watched: WeakSet[Future] = WeakSet()
        self.pushing, self.has_card = False, False
        args = trainer.args
        if args.hub_token is not None:
            args.hub_token = Secret(args.hub_token)
        replace_method_(trainer, "create_model_card", self.create_model_card)
        replace_method_(trainer, "push_to_hub", self.push_to_hub)

    def on_push_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Wait for the push before this one, which still reads the files that this one writes. While training goes on,
        the Trainer writes no card, so write one that says what loading needs."""
        pushes = vars(self.trainer).get("push_in_progress")
        if pushes is not None:
            pushes.wait_until_done()
        layout, card = layout_of(_model(self.trainer)), _folder(args) / "README.md"
        if args.should_save and layout is not None and not layout.packed and not card.exists():
            card.parent.mkdir(parents=True, exist_ok=True)
            card.write_text(IN_PROGRESS)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Watch the push that began with this checkpoint: in the background, its failure would be lost."""
        pushes = vars(self.trainer).get("push_in_progress")
        for job in () if pushes is None else pushes.jobs:
            if job not in self.watched:
                self.watched.add(job)
                job.add_done_callback(partial(_warn_if_failed, self.trainer.hub_model_id, args.hub_token))

    def create_model_card(self, stock: Any, *args: Any, **kwargs: Any) -> None:
        """Write the Trainer's own card, then ours in its place; the metadata that the Trainer alone knows is kept."""
        trainer, model = self.trainer, _model(self.trainer)
        if self.has_card:  # the push is tried again: with another card, what has arrived would be committed twice
            return
        stock(*args, **kwargs)
        if not trainer.is_world_process_zero() or not isinstance(model, PreTrainedModel):
            return
        folder = _folder(trainer.args)
        if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):  # else this process has a part of it only
            make_loadable(model, folder)
        readme = folder / "README.md"
        known = metadata_load(readme) or {}
        write_card(model, folder, repo_id=trainer.hub_model_id)
        ours = metadata_load(readme) or {}
        tags = list(dict.fromkeys([*ours.get("tags", ()), *known.get("tags", ())]))
        metadata_save(readme, {**known, **ours, "tags": tags})
        self.has_card = self.pushing

    def push_to_hub(self, stock: Any, *args: Any, **kwargs: Any) -> Any:
        """Push, and retry after a transient failure; if only an answer was lost, the Hub has all files already.

        Raises:
            PushError: the Hub refused, or could not be reached in several attempts.
        """
        trainer = self.trainer
        repo_id = trainer.hub_model_id or trainer.args.hub_model_id or _folder(trainer.args).name
        token = kwargs.get("token") or trainer.args.hub_token
        state = f"The commit is there whole or not at all, and the model is in {trainer.args.output_dir}"
        self.pushing = True
        try:
            return with_retries(partial(stock, *args, **kwargs), repo_id, token, lambda: state)
        finally:
            self.pushing = self.has_card = False


def attach_hub_pushes() -> None:
    """Attach `HubPushes` to the Trainer whose callbacks are running, once."""
    from transformers import Trainer  # here, since it takes its time and every Trainer has brought it already

    trainer = calling(Trainer)
    if trainer is not None and not any(isinstance(c, HubPushes) for c in trainer.callback_handler.callbacks):
        trainer.add_callback(HubPushes(trainer))


def _warn_if_failed(repo_id: str | None, token: str | None, job: Future) -> None:
    if not job.cancelled() and job.exception() is not None:
        reason = summary(job.exception(), token)
        logger.warning(f"{repo_id}: a push in mid-training failed, and training goes on. {reason}")


def _model(trainer: "Trainer") -> nn.Module:
    return trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)


def _folder(args: TrainingArguments) -> Path:
    return Path(os.fspath(args.output_dir or "."))
