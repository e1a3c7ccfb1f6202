"""`DendriticCallback`: runs the plain functions at the right moments of a stock `Trainer`. It contains no formulas.

Everything that training changes lives in the model's buffers and the Trainer's step counter, so a resumed run continues
bit for bit; the callback itself can be thrown away and built again at any time.
"""

from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.utils import logging

from ...compress import compress_
from ...config import DendriticConfig
from ...distillation import distillation_of
from ...distributed.collectives import from_first_rank_
from ...errors import invalid
from ...inject import inject_
from ...pruner import check_trains_sprouts
from ...state import layout_of
from ...structure.time_correction import restore_timing_, timing_of
from ...structure.wrappers import inner_model
from ...train_steps import Pruning, Update, initial_sparsity, mask_, pruning_of, target_sparsity, update_plan
from ..card.provenance import fingerprint, note_control, note_evaluation, note_training, transfer_scores
from ..card.write import write_card
from ..checkpoint.key_mapping import rename_on_load_state_dict
from ..checkpoint.sizes import save_all
from .deepspeed import around_steps_, stock_steps_
from .due import freeze_of, is_due, prune_in_, scores_in
from .early_packing import pack_early_
from .engines import check_engine, deepspeed_engine, save_full_state_dict
from .first_batch import example_inputs_of_trainer, timed_inputs
from .handed_in import check_injected, is_done
from .last_checkpoint import random_states, write_checksums
from .logging import Progress, order_callbacks
from .push import attach_hub_pushes
from .resume import (
    attach_resume_checks,
    check_length,
    planned_steps,
    refuse_other_masks,
    refuse_second,
    saved_attributes,
)
from .sizes import Sizes, end_on_failure_, refuse_sizes
from .teacher import Teacher, match_trainer, name_of, teach_, teach_in_step_, teacher_for
from .token_counts import token_counts_of_trainer
from .until_final import train_until_

logger = logging.get_logger(__name__)


class DendriticCallback(TrainerCallback, ExportableState):
    """Compresses the Trainer's model while it trains; `trainer.train()` ends with `trainer.model` packed.

    A model that is packed with the same config already is left as it is, so that a script can evaluate and fine-tune
    what it has made.

    Args:
        config: what to prune, how far and when (or its dict form).
        teacher: what `config.distillation`, if it is above 0, learns from: a model, a folder or an id on the Hub.
            Default: a copy of the model as it is handed to the Trainer, so hand in one that knows the task.
        example_inputs: keyword arguments of `model.forward` for tracing the wiring; by default made of the first
            samples of the Trainer's training data, or from the model's config.
        layer_by_layer: compress a model whose forward pass cannot be traced, too; see `inject_`.
        until_final: let nothing, such as `EarlyStoppingCallback`, stop the training before the mask is final. By
            default a training that is stopped before that ends with a warning and is not packed.
        baseline_metrics: scores of a dense model that was trained as long, on the evaluation data, for the model card:
            what `evaluate()` of its Trainer returned.
        pack_at_freeze: pack the model as soon as its mask is final, so that the rest of the training is that of the
            small model, with the state of the optimizer that belongs to what is left. In one process, with an optimizer
            of `torch.optim` that treats each entry on its own; elsewhere the log says that it is packed at the end, as
            by default. Gradients are then clipped by the norm of what is left alone.
        token_counts: with `embedding_rank`, how often each token occurs, as for `inject_`; by default counted in the
            `input_ids` of the Trainer's training data, or all alike where there are none.

    Where the Trainer's model is not a `PreTrainedModel` but holds one (a `SentenceTransformer`), that is compressed.

    Raises:
        DendriticError: from the Trainer's constructor or from `train()`, when the model or the arguments would break
            the compression; the message says what to do.
    """

    def __init__(
        self,
        config: DendriticConfig | dict[str, Any],
        teacher: Teacher | None = None,
        *,
        example_inputs: Any = None,
        layer_by_layer: bool = False,
        until_final: bool = False,
        baseline_metrics: dict[str, float] | None = None,
        pack_at_freeze: bool = False,
        token_counts: Any = None,
    ):
        self.config = DendriticConfig.from_dict(config) if isinstance(config, dict) else config
        if not isinstance(self.config, DendriticConfig):
            raise invalid("config", config, "must be a DendriticConfig", "Pass DendriticConfig(sparsity=...).")
        if teacher is not None and not self.config.distillation:
            rule = f"has nothing to teach while distillation = {self.config.distillation}"
            raise invalid("teacher", type(teacher).__name__, rule, "Pass DendriticConfig(distillation=1.0, ...).")
        self.teacher = teacher
        self.example_inputs, self.token_counts = example_inputs, token_counts
        self.baseline_metrics = baseline_metrics
        self.layer_by_layer, self.until_final, self.pack_at_freeze = layer_by_layer, until_final, pack_at_freeze
        self.plan: dict[int, Update] = {}
        self.max_steps = 0  # the number of steps that the plan is made for
        self.random_states: list[str] = []
        self.regrown = 0
        self.packed: Pruning | None = None  # what was pruned when the model was packed before the end
        self.timing: dict[str, Any] | None = None  # what is known of times, where the target is one
        self.saw_init = False
        self.progress = Progress()
        self.sizes = Sizes()
        self.engine: Any = None  # the DeepSpeed engine, which calls the optimizer itself

    def state(self) -> dict[str, Any]:
        """What the Trainer saves to build this callback again; see `ExportableState`."""
        run = {"max_steps": self.max_steps, "random_states": self.random_states, "regrown": self.regrown}
        run |= {} if self.timing is None else {"timing": self.timing}
        made = {"config": self.config.to_dict(), "until_final": self.until_final}
        made |= {} if self.baseline_metrics is None else {"baseline_metrics": self.baseline_metrics}
        made |= {"pack_at_freeze": True} if self.pack_at_freeze else {}
        return {"args": made, "attributes": {"saw_init": True, **run}}

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        self.saw_init = True
        refuse_second(DendriticCallback)
        check_engine(args.torch_compile)
        attach_hub_pushes()
        attach_resume_checks()
        wrapper, model = model, inner_model(model)
        if is_done(model, self.config):
            return
        teacher = teacher_for(model, self.teacher) if self.config.distillation else None
        inputs = self._inputs(model, wrapper) if layout_of(model) is None else None
        timed_on = self.example_inputs or timed_inputs(model, self.config)
        counts = token_counts_of_trainer(model, self.config) if self.token_counts is None else self.token_counts
        how = {"layer_by_layer": self.layer_by_layer, "timed_on": timed_on, "token_counts": counts}
        inject_(model, self.config, example_inputs=inputs, **how)
        teach_(model, teacher, self.config)
        if isinstance(model, PreTrainedModel):
            rename_on_load_state_dict(model)
        refuse_other_masks(model)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        refuse_second(DendriticCallback)
        model = inner_model(model)
        check_injected(model, self.config, saw_init=self.saw_init)
        if is_done(model, self.config):
            distillation = distillation_of(model)
            if distillation is not None:  # it was packed at the freeze of the run that is resumed
                match_trainer(distillation, args)
            return
        notes = saved_attributes(type(self).__name__, self.config, state)
        self.max_steps, self.regrown = planned_steps(notes, state), notes.get("regrown", 0)
        if notes.get("timing") is not None:
            restore_timing_(model, notes["timing"])
        self.timing, self.random_states = timing_of(model), random_states(args)
        self.plan = update_plan(self.config, self.max_steps, target_sparsity(model), initial_sparsity(model))
        check_length(self.max_steps, self.plan, state, self.config)
        check_trains_sprouts(model, kwargs["optimizer"])
        teacher = name_of(model, self.teacher) if self.config.distillation else None
        note_training(model, args, state, kwargs["train_dataloader"], teacher)
        if self.baseline_metrics is not None:
            note_control(model, self.baseline_metrics)
        attach_hub_pushes()
        self.progress = order_callbacks(self)
        if self.until_final:
            train_until_(freeze_of(self.plan))
        distillation = distillation_of(model)
        if distillation is not None:
            match_trainer(distillation, args)
        self.engine = deepspeed_engine()
        refuse_sizes(self.config, model, self.engine)
        if self.config.smaller:
            end_on_failure_(self.sizes)
        if self.engine is not None:
            around_steps_(self.engine, model, partial(self._due, state), partial(self._prune, model, state, None))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        model, step = inner_model(model), state.global_step + 1
        self.sizes.begin_(model, self.config, self.plan, step)
        teach_in_step_(model, scores=scores_in(step, self.plan, self.config), size=self.sizes.present)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        if self.engine is None and not self.sizes.still_gradients_():
            self._prune(inner_model(model), state, kwargs["optimizer"])

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        self.sizes.end_()
        if self.plan and self.engine is None and self.packed is None:
            mask_(inner_model(model))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        if self.plan and state.global_step == freeze_of(self.plan):
            self._forget_best(state)
            logger.info(f"Step {state.global_step}: the mask is frozen; the rest of the training is recovery.")
            if self.pack_at_freeze:
                wrapper, model = model, inner_model(model)
                pruning, inputs = pruning_of(model), self._inputs(model, wrapper)
                self.packed = pruning if pack_early_(model, inputs, kwargs["optimizer"], args, wrapper) else None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        logs: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        if self.plan and "loss" in logs:
            self.progress.log(self.packed or pruning_of(inner_model(model)), self.regrown, self.plan, logs, state)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        metrics: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        model = inner_model(model)
        layout = layout_of(model)
        if layout is not None:
            sparsity = None if layout.packed else pruning_of(model).sparsity
            data = kwargs["eval_dataloader"]
            note_evaluation(model, metrics, step=state.global_step, sparsity=sparsity, data=data)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
        if args.should_save and folder.is_dir():
            write_checksums(folder)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        self.sizes.end_()
        if not self.plan or self.packed is not None:
            self._end_packed(inner_model(model))
            return
        if self.engine is not None:
            stock_steps_(self.engine)
            self.engine = None
        final = freeze_of(self.plan)
        if state.global_step < final:
            logger.warning(
                f"Training stopped at step {state.global_step}, before the mask is final at step {final}: the model is "
                "not packed. Resume the training, or call compress_(model) to pack it as it is."
            )
            return
        wrapper, model = model, inner_model(model)
        distillation = distillation_of(model)
        if distillation is not None:
            distillation.remove()
        from_first_rank_(model.buffers())  # BatchNorm has seen other inputs on every rank; rank 0's count, as in DDP
        if self.config.sizes and args.should_save and isinstance(model, PreTrainedModel):
            write_card(model, save_all(model, args.output_dir or "."), repo_id=args.hub_model_id, measuring=False)
        masked = fingerprint(model)
        compress_(model, self._inputs(model, wrapper))
        transfer_scores(model, masked)
        save_full_state_dict()
        self.plan = {}

    def _end_packed(self, model: nn.Module) -> None:
        """End a training of a model that is packed already."""
        distillation = distillation_of(model)
        if distillation is not None:
            distillation.remove()
        self.plan, self.packed = {}, None

    def _inputs(self, model: nn.Module, wrapper: nn.Module) -> Any:
        """What the model is traced and proved with; None where it is to be made from the config."""
        return self.example_inputs or example_inputs_of_trainer(model, wrapper)

    def _due(self, state: TrainerState) -> bool:
        """Whether this step scores or updates."""
        return is_due(state.global_step + 1, self.plan, self.config)

    def _prune(self, model: nn.Module, state: TrainerState, optimizer: Optimizer | None) -> None:
        """What this step does between the gradients and the optimizer."""
        pruning = prune_in_(state.global_step + 1, model, self.plan, self.config, optimizer)
        if pruning is not None:
            self.regrown, self.timing = pruning.regrown, timing_of(model)

    def _forget_best(self, state: TrainerState) -> None:
        """A checkpoint from before the freeze is not as small as promised: it may not count as the best one."""
        state.best_metric = state.best_global_step = state.best_model_checkpoint = None
