"""When a training prunes: the optimizer steps of the mask updates, and what each of them aims at."""

from dataclasses import dataclass

from .config import DendriticConfig
from .errors import invalid
from .schedules import SCHEDULES, cosine_decay, update_steps


@dataclass(frozen=True)
class Update:
    """What one mask update aims at: the fraction removed, and the fraction of each layer that returns."""

    sparsity: float
    regrow: float


def update_plan(config: DendriticConfig, max_steps: int) -> dict[int, Update]:
    """Optimizer step (1-based, ascending) -> the update due in it. The last one reaches `config.sparsity` and is final.

    Raises:
        DendriticError: training is too short for a single update.

    >>> plan = update_plan(DendriticConfig(sparsity=0.6, updates=2), max_steps=100)
    >>> {step: (round(update.sparsity, 3), round(update.regrow, 3)) for step, update in plan.items()}
    {33: (0.529, 0.049), 60: (0.6, 0.0)}
    """
    steps = update_steps(max_steps, config.start, config.end, config.updates)
    if not steps:
        rule = f"no mask update fits between start = {config.start} and end = {config.end}"
        raise invalid("max_steps", max_steps, rule, "Train longer, or widen start … end.")
    sparsity = SCHEDULES[config.schedule](config.sparsity, config.start, config.end)
    regrow = cosine_decay(config.regrow, config.start, config.end)
    progress = {step: step / max_steps for step in steps} | {steps[-1]: config.end}
    return {step: Update(sparsity(p), regrow(p)) for step, p in progress.items()}
