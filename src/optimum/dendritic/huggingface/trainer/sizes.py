"""A training of several sizes of one model at once: each step is one of them (Yu et al. 2019, slimmable networks)."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ...config import DendriticConfig
from ...errors import invalid
from ...sizes import Narrowed, size_due
from ...state import gates_in, injected_layout, layers_in
from ...structure.ranking import ranking_of
from ...train_steps import Update
from ...unofficial import calling, replace_method_


class Sizes:
    """Which size the present step has. Everything follows from the step, the scores and the masks: there is no state to
    resume."""

    def __init__(self) -> None:
        self.present: Narrowed | None = None
        self._final: dict[float, dict[str, Tensor]] = {}  # the masks of each smaller size, once they are final

    def begin_(self, model: nn.Module, config: DendriticConfig, plan: Mapping[int, Update], step: int) -> None:
        """Make the model the size that this step has."""
        self.end_()
        sparsity = size_due(config, plan, step) if plan else None
        if sparsity is None:
            return
        layout = injected_layout(model)
        layers = layers_in(model, layout)
        gates = gates_in(model, layout, layers)
        masks = self._final.get(sparsity)
        if masks is None:
            masks = ranking_of(model, layout, layers, gates).choose(sparsity)
        self._final = self._final | {sparsity: masks} if step > max(plan) else {}
        self.present = Narrowed(model, gates, masks)

    def still_gradients_(self) -> bool:
        """Whether the step has a smaller size; what sleeps then has no gradient, and nothing is scored."""
        if self.present is None:
            return False
        self.present.still_gradients_()
        return True

    def end_(self) -> None:
        """Make the model whole again."""
        if self.present is not None:
            self.present.widen_()
            self.present = None


def end_on_failure_(sizes: Sizes) -> None:
    """Let the model be whole again wherever a step of the Trainer whose callbacks are running fails: no callback hears
    of that, and whoever catches it may save the model, or go on with smaller batches."""
    from transformers import Trainer  # here, since it takes its time and every Trainer has brought it already

    trainer = calling(Trainer)
    if trainer is not None:
        replace_method_(trainer, "training_step", partial(_step, sizes))


def _step(sizes: Sizes, stock: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return stock(*args, **kwargs)
    except BaseException:
        sizes.end_()
        raise


def refuse_sizes(config: DendriticConfig, model: nn.Module, engine: Any) -> None:
    """Raises `DendriticError` where an engine calls the optimizer itself, and would move what sleeps; and where several
    sizes could not be saved."""
    if config.sizes and not isinstance(model, PreTrainedModel):
        rule = f"of a {type(model).__name__} could not be cut again: only the checkpoint of a PreTrainedModel names it"
        raise invalid("sizes", config.sizes, rule, "Train one sparsity at a time.")
    if engine is not None and config.smaller:
        field = "sizes" if config.sizes else "dormant"
        rule = "DeepSpeed moves what sleeps, too: it calls the optimizer itself"
        raise invalid(field, vars(config)[field], rule, f"Train without DeepSpeed, or without {field}.")
