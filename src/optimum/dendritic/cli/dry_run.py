"""`optimum-cli dendritic compress --dry-run`: what would go and what would be left, before anything is saved."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..compress import compress_
from ..config import DendriticConfig
from ..inject import inject_
from ..inspection.density import density
from ..one_shot.prune import prune_
from .show import draw, style
from .tables import before_and_after

BY_WEIGHTS = "magnitude"  # the score that needs neither labels nor a loss


def planned(
    model: PreTrainedModel,
    config: DendriticConfig,
    batches: list[dict[str, Tensor]] | None,
    inputs: Mapping[str, Tensor],
) -> PreTrainedModel:
    """The model, pruned by one score without a reconstruction, and packed.

    Args:
        batches: what it is scored on; without them, it is scored by its weights.
        inputs: one sample.
    """
    by_weights = batches is None
    inject_(model, replace(config, importance=BY_WEIGHTS) if by_weights else config, timed_on=dict(inputs))
    prune_(model, [dict(inputs)] if batches is None else batches, reconstruct=False, rounds=1)
    compress_(model)
    return model


def told(
    model: PreTrainedModel, config: DendriticConfig, before: Mapping[str, Any], after: Mapping[str, Any], scored: bool
) -> str:
    """The map of what would be left, layer by layer, and the figures."""
    by = (
        f"{config.importance} on the samples" if scored else "the magnitude of the weights, since there is no --dataset"
    )
    amount = f"{config.target} = {vars(config)[config.target]:g}"
    lines = [f"A dry run of {amount}, ranked by {by}; nothing is saved.", ""]
    lines += [draw(density(model), shutil.get_terminal_size().columns, style()), "", before_and_after(before, after)]
    return "\n".join(lines)
