"""What a student loses against its teacher: `T² KL(teacher || student)` at temperature `T` on the logits (Hinton et al.
2015, section 2), plus the squared distance of the hidden states relative to the teacher's (Jiao et al. 2020, TinyBERT,
eq. 8, without projection), layer by layer where shapes agree.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import invalid

TEMPERATURE = 2.0


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
        attended: positions that are not padding; used for hidden states, and for logits that `labelled` does not fit.
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
