"""`distill_`: a teacher's outputs become a second term of the loss that a model returns while it trains. The teacher is
another model, or the model itself as it is inside of a context.

The term (`functional/distillation_loss.py`) is added by hooks on the model itself, so that a stock `Trainer`, which
reads `outputs.loss` alone, needs nothing else.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .errors import invalid
from .functional.distillation_loss import distillation_loss
from .structure.example_inputs import LABELS, decodes_text

ATTRIBUTE = "dendritic_distillation"
NOT_FOR_TEACHERS = ("num_items_in_batch", "output_hidden_states", *LABELS)


class Distillation:
    """The hooks of `distill_` and their switch.

    Attributes:
        teacher: The teacher, in eval mode and without gradients; it is outside the module tree and every checkpoint.
            Or the model itself, and then `itself` is True.
        around: What the teacher is asked inside of. A model is its own teacher inside of one that makes it another.
        weight: The factor of the distillation term.
        autocast: The dtype in which the teacher computes; None for its own.
        shares: The number of batches (accumulation x processes) that a loss normalised by `num_items_in_batch` is
            split into.
        active: Whether the term is added at present.
    """

    def __init__(self, model: nn.Module, teacher: nn.Module, weight: float) -> None:
        self.teacher, self.itself, self.weight = teacher, teacher is model, weight
        self.around: Callable[[], AbstractContextManager[Any]] = nullcontext
        self.autocast: torch.dtype | None = None
        self.shares = 1
        self.active = True
        self._model = model
        self._taught: Mapping[str, Any] = {}
        self._hidden = _shows_hidden(model) and _shows_hidden(teacher)
        untraced: Any = torch.compiler.disable
        self._handles = [
            model.register_forward_pre_hook(untraced(self._ask), with_kwargs=True),  # before the student answers, which
            model.register_forward_hook(untraced(self._add), with_kwargs=True),  # may be the same model
        ]

    def remove(self) -> None:
        """Leave the model as it was before `distill_`."""
        for handle in self._handles:
            handle.remove()
        self._model.__dict__.pop(ATTRIBUTE, None)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the term out inside, so that importance is read from the gradients of the task's loss alone."""
        active, self.active = self.active, False
        try:
            yield
        finally:
            self.active = active

    def _ask(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        if not (self.active and _trains(model)):
            return None
        self._taught = self._ask_teacher(model, args, kwargs)
        return args, kwargs | ({"output_hidden_states": True} if self._hidden else {})

    def _add(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> Any:
        if not _trains(model):
            return None
        if not isinstance(outputs, Mapping) or outputs.get("loss") is None:
            rule = "holds no loss to add to (label smoothing and compute_loss_func take the labels away from the model)"
            remedy = (
                "Train with label_smoothing_factor=0 and without compute_loss_func, or set distillation=0 and add "
                "optimum.dendritic.distillation_loss(outputs, teacher_outputs) in your own loss."
            )
            raise invalid("outputs.loss", None, rule, remedy)
        if not self.active:
            return None
        taught, self._taught = self._taught, {}
        share = 1 if kwargs.get("num_items_in_batch") is None else 1 / self.shares
        masks = {"labelled": _labelled(kwargs), "attended": _attended(kwargs)}
        term = self.weight * share * distillation_loss(outputs, taught, **masks, problem=_problem(model))
        kept = {key: value for key, value in outputs.items() if key != "hidden_states"}
        return type(outputs)(**kept | {"loss": outputs["loss"] + term})

    @torch.no_grad()
    def _ask_teacher(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
        device = next(model.parameters()).device
        if next(self.teacher.parameters()).device != device:
            self.teacher.to(device)
        left_out = NOT_FOR_TEACHERS if not _decodes_labels(model, kwargs) else set(NOT_FOR_TEACHERS) - {"labels"}
        kwargs = {key: value for key, value in kwargs.items() if key not in left_out}
        kwargs |= {"output_hidden_states": True} if self._hidden else {}
        with self.around(), torch.autocast(device.type, self.autocast) if self.autocast else nullcontext():
            return self.teacher(*args, **kwargs)


def distill_(model: nn.Module, teacher: nn.Module, *, weight: float = 1.0) -> Distillation:
    """Add `weight` times the distillation term to `outputs.loss` of `model` whenever it runs in training mode.

    Args:
        model: returns a mapping with `loss` when it is given labels (a `ModelOutput` or a dict).
        teacher: takes the same inputs and returns logits of the same shape; it is put in eval mode and frozen.

    Returns:
        The switch; `remove()` it before the model is packed or saved by pickling.

    Raises:
        DendriticError: `model` has a teacher already, or is its own teacher.
    """
    if teacher is model:
        rule = "is the model itself, which has nothing to learn from itself"
        raise invalid("teacher", type(teacher).__name__, rule, "Pass copy.deepcopy(model), made before training.")
    distillation = _attach(model, teacher, weight)
    teacher.eval().requires_grad_(False)
    return distillation


def distill_itself_(model: nn.Module, *, weight: float = 1.0) -> Distillation:
    """As `distill_`, with the model as its own teacher: as what it is inside of the context `around`, which whoever
    turns `active` on sets before.

    Returns:
        The switch, which is off.

    Raises:
        DendriticError: `model` has a teacher already.
    """
    distillation = _attach(model, model, weight)
    distillation.active = False
    return distillation


def _attach(model: nn.Module, teacher: nn.Module, weight: float) -> Distillation:
    if distillation_of(model) is not None:
        raise invalid("model", type(model).__name__, "has a teacher already", "Call remove() on it first.")
    distillation = Distillation(model, teacher, weight)
    model.__dict__[ATTRIBUTE] = distillation
    return distillation


def distillation_of(model: nn.Module) -> Distillation | None:
    """The switch of a model that is distilled, None for any other."""
    return model.__dict__.get(ATTRIBUTE)


def _trains(model: nn.Module) -> bool:
    return model.training and torch.is_grad_enabled()


def _shows_hidden(model: nn.Module) -> bool:
    """Whether `model` can be asked for its hidden states; one that cannot is distilled by its logits alone."""
    if not isinstance(model, PreTrainedModel):
        return False
    parameters = inspect.signature(model.forward).parameters
    return "output_hidden_states" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _decodes_labels(model: nn.Module, kwargs: Mapping[str, Any]) -> bool:
    """Whether a model makes the inputs of its decoder out of the labels."""
    given = {"decoder_input_ids", "decoder_inputs_embeds"} & kwargs.keys()
    return not given and isinstance(model, PreTrainedModel) and decodes_text(model)


def _labelled(kwargs: Mapping[str, Any]) -> Tensor | None:
    labels = kwargs.get("labels")
    positions = isinstance(labels, Tensor) and labels.dim() == 2 and not labels.is_floating_point()
    return labels != -100 if positions else None


def _attended(kwargs: Mapping[str, Any]) -> Tensor | None:
    attention = kwargs.get("attention_mask")
    return attention.bool() if isinstance(attention, Tensor) and attention.dim() == 2 else None


def _problem(model: nn.Module) -> str | None:
    return model.config.problem_type if isinstance(model, PreTrainedModel) else None
