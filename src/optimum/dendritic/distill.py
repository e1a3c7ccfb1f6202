"""`distill_`: a teacher's outputs become a second term of the loss that a model returns while it trains.

The term is `T² KL(teacher || student)` at temperature `T` on the logits (Hinton et al. 2015, section 2), plus the
squared distance of the hidden states relative to the teacher's (Jiao et al. 2020, TinyBERT, eq. 8, without projection),
layer by layer where shapes agree. It is added by hooks on the model itself, so that a stock `Trainer`, which only reads
`outputs.loss`, needs nothing else.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from .errors import invalid
from .inputs import LABELS

ATTRIBUTE = "dendritic_distillation"
TEMPERATURE = 2.0
NOT_FOR_TEACHERS = ("num_items_in_batch", "output_hidden_states", *LABELS)


class Distillation:
    """The hooks of `distill_` and their switch.

    Attributes:
        teacher: in eval mode, without gradients, outside the module tree and hence outside every checkpoint.
        weight: factor of the distillation term.
        autocast: dtype in which the teacher computes, None for its own.
        shares: into how many batches a loss that `num_items_in_batch` normalises is split (accumulation x processes).
        active: whether the term is added at present.
    """

    def __init__(self, model: nn.Module, teacher: nn.Module, weight: float) -> None:
        self.teacher, self.weight = teacher.eval().requires_grad_(False), weight
        self.autocast: torch.dtype | None = None
        self.shares = 1
        self.active = True
        self._model = model
        self._hidden = isinstance(model, PreTrainedModel) and isinstance(teacher, PreTrainedModel)
        self._handles = [
            model.register_forward_pre_hook(self._ask, with_kwargs=True),
            model.register_forward_hook(self._add, with_kwargs=True),
        ]

    def remove(self) -> None:
        """Leave the model as it was before `distill_`."""
        for handle in self._handles:
            handle.remove()
        self._model.__dict__.pop(ATTRIBUTE, None)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Steps inside train on the task's loss alone: importance is read off such gradients."""
        active, self.active = self.active, False
        try:
            yield
        finally:
            self.active = active

    def _ask(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        if self._due(model) and self._hidden:
            return args, kwargs | {"output_hidden_states": True}
        return None

    def _add(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> Any:
        if not self._due(model):
            return None
        if not isinstance(outputs, Mapping) or outputs.get("loss") is None:
            rule = "holds no loss to add to (label smoothing and compute_loss_func take the labels away from the model)"
            remedy = (
                "Train with label_smoothing_factor=0 and without compute_loss_func, or set distillation=0 and add "
                "optimum.dendritic.distillation_loss(outputs, teacher_outputs) in your own loss."
            )
            raise invalid("outputs.loss", None, rule, remedy)
        taught = self._ask_teacher(model, args, kwargs)
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
        kwargs = {key: value for key, value in kwargs.items() if key not in NOT_FOR_TEACHERS}
        kwargs |= {"output_hidden_states": True} if self._hidden else {}
        with torch.autocast(device.type, self.autocast) if self.autocast else nullcontext():
            return self.teacher(*args, **kwargs)

    def _due(self, model: nn.Module) -> bool:
        return self.active and model.training and torch.is_grad_enabled()


def distill_(model: nn.Module, teacher: nn.Module, *, weight: float = 1.0) -> Distillation:
    """Add `weight` times the distillation term to `outputs.loss` of `model` whenever it runs in training mode.

    Args:
        model: returns a mapping with `loss` when it is given labels (a `ModelOutput` or a dict).
        teacher: takes the same inputs and returns logits of the same shape; it is put in eval mode and frozen.

    Returns:
        The switch; `remove()` it before the model is packed or saved by pickling.

    Raises:
        DendriticError: `model` has a teacher already, or is its own.
    """
    if distillation_of(model) is not None:
        raise invalid("model", type(model).__name__, "has a teacher already", "Call remove() on it first.")
    if teacher is model:
        rule = "is the model itself, which would only agree with itself"
        raise invalid("teacher", type(teacher).__name__, rule, "Pass copy.deepcopy(model), made before training.")
    distillation = Distillation(model, teacher, weight)
    model.__dict__[ATTRIBUTE] = distillation
    return distillation


def distillation_of(model: nn.Module) -> Distillation | None:
    """The switch of a model that is distilled, None for any other."""
    return model.__dict__.get(ATTRIBUTE)


def distillation_loss(
    outputs: Mapping[str, Any],
    teacher_outputs: Mapping[str, Any],
    *,
    labelled: Bool[Tensor, "batch length"] | None = None,
    attended: Bool[Tensor, "batch length"] | None = None,
    problem: str | None = None,
) -> Float[Tensor, ""]:
    """`T² KL` on every logits tensor, averaged over positions, plus the mean relative distance of hidden states.

    Args:
        outputs: of the student: `logits` (or `start_logits`, …), shape `[batch, ..., classes]`, and, if they are to be
            compared, `hidden_states`.
        teacher_outputs: of the teacher, likewise.
        labelled: positions that have a label; of logits `[batch, length, classes]` only these count.
        attended: positions that are no padding; used for hidden states, and for logits that `labelled` does not fit.
        problem: "regression" or "multi_label_classification" compares logits by their squared distance.

    Raises:
        DendriticError: there are no logits, or the teacher's differ in shape.
    """
    names = [key for key in outputs if key.endswith("logits")]
    if not names:
        rule = "hold no logits to compare"
        raise invalid("outputs", list(outputs), rule, "Distil a model with a head, or set distillation=0.")
    loss = torch.zeros((), device=outputs[names[0]].device)
    for name in names:
        student, taught = outputs[name], teacher_outputs.get(name)
        if taught is None or taught.shape != student.shape:
            shape = None if taught is None else tuple(taught.shape)
            rule = f"must have the student's shape {tuple(student.shape)}"
            raise invalid(f"teacher.{name}", shape, rule, "Choose a teacher with the same classes and inputs.")
        squared = problem in ("regression", "multi_label_classification") or student.shape[-1] == 1
        rows = (student - taught).float().square().mean(-1) if squared else divergence(student, taught)
        fitting = [mask for mask in (labelled, attended) if mask is not None and mask.shape == rows.shape]
        loss = loss + (_mean(rows, fitting[0]) if fitting else rows.mean())
    hidden = zip(outputs.get("hidden_states") or (), teacher_outputs.get("hidden_states") or (), strict=False)
    distances = [relative_distance(s, t, attended) for s, t in hidden if s.shape == t.shape]
    return loss + torch.stack(distances).mean() if distances else loss


def divergence(student: Float[Tensor, "*rows classes"], teacher: Float[Tensor, "*rows classes"]) -> Tensor:
    """`T² KL(teacher || student)` of each row, both softened by `T` (Hinton et al. 2015)."""
    wanted = F.log_softmax(teacher.float() / TEMPERATURE, -1)
    given = F.log_softmax(student.float() / TEMPERATURE, -1)
    return TEMPERATURE**2 * F.kl_div(given, wanted, reduction="none", log_target=True).sum(-1)


def relative_distance(
    student: Float[Tensor, "batch ..."], teacher: Float[Tensor, "batch ..."], attended: Tensor | None
) -> Float[Tensor, ""]:
    """`||student - teacher||² / ||teacher||²`, so that one weight fits every layer and family."""
    distance, size = (student - teacher).float().square(), teacher.float().square()
    if attended is not None and attended.shape == distance.shape[:2]:
        counts = attended.reshape(*attended.shape, *[1] * (distance.dim() - 2))
        distance, size = distance * counts, size * counts
    return distance.sum() / size.sum().clamp(min=torch.finfo(torch.float32).tiny)


def _mean(rows: Tensor, counts: Tensor) -> Tensor:
    return (rows * counts).sum() / counts.sum().clamp(min=1)


def _labelled(kwargs: Mapping[str, Any]) -> Tensor | None:
    labels = kwargs.get("labels")
    positions = isinstance(labels, Tensor) and labels.dim() == 2 and not labels.is_floating_point()
    return labels != -100 if positions else None


def _attended(kwargs: Mapping[str, Any]) -> Tensor | None:
    attention = kwargs.get("attention_mask")
    return attention.bool() if isinstance(attention, Tensor) and attention.dim() == 2 else None


def _problem(model: nn.Module) -> str | None:
    return model.config.problem_type if isinstance(model, PreTrainedModel) else None
