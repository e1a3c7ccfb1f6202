"""What is due in a step of a training, between its gradients and its optimizer."""

from collections.abc import Mapping

from torch import nn
from torch.optim import Optimizer

from ...config import DendriticConfig
from ...train_steps import Pruning, Update, score_, update_

Plan = Mapping[int, Update]


def freeze_of(plan: Plan) -> int:
    """The step of the final mask update; 0 where there is nothing to do."""
    return max(plan, default=0)


def scores_in(step: int, plan: Plan, config: DendriticConfig) -> bool:
    """Whether importance is read in this step: until the freeze, and beside a teacher in every second step, which
    then has the task's loss alone. (A distillation loss is near zero at first and would rank noise.)"""
    return step <= freeze_of(plan) and (not config.distillation or step % 2 == 1)


def is_due(step: int, plan: Plan, config: DendriticConfig) -> bool:
    """Whether this step scores or updates."""
    return scores_in(step, plan, config) or step in plan


def prune_in_(
    step: int, model: nn.Module, plan: Plan, config: DendriticConfig, optimizer: Optimizer | None
) -> Pruning | None:
    """Score and update the masks of an injected model, as far as this step does. Returns what an update came to."""
    if scores_in(step, plan, config):
        score_(model)
    if step not in plan:
        return None
    return update_(model, plan[step].sparsity, regrow=plan[step].regrow, optimizer=optimizer)
