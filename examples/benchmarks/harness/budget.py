"""The control that is small from the start: the largest dense model that costs no more than the pruned one."""

from bisect import bisect_left
from collections.abc import Callable, Sequence

import torch
from torch import nn

from optimum.dendritic import DendriticConfig
from optimum.dendritic.structure.targets import target_names

from .sizes import sizes
from .task import Task

WHOLE = {"params": "parameters", "macs": "macs"}
TARGETS = {"params": "target_parameters", "macs": "target_macs"}


def widest_within(
    task: Task, dense: nn.Module, level: float, budget: str, candidates: Sequence[Callable[[], nn.Module]]
) -> nn.Module:
    """The first of `candidates`, from large to small, within what `level` leaves of the whole `dense` model."""
    full = _counts(task, dense)
    allowed = full[WHOLE[budget]] - level * full[TARGETS[budget]]
    state = torch.get_rng_state()
    first = bisect_left(candidates, True, key=lambda make: _counts(task, make())[WHOLE[budget]] <= allowed)
    if first == len(candidates):
        raise ValueError(f"No candidate is as small as level {level} asks for.")
    torch.set_rng_state(state)  # so that the weights of a seed do not depend on how many were tried
    return candidates[first]()


def _counts(task: Task, model: nn.Module) -> dict[str, int]:
    inputs = task.example_inputs()
    fields = {name: value for name, value in task.pruning().items() if name in ("target_modules", "exclude_modules")}
    return sizes(model, inputs, target_names(model, DendriticConfig(**fields)))
