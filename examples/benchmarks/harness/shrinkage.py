"""Growing group shrinkage: what is weak is made weaker before it is pruned by its magnitude: a control.

Fang et al. 2023, DepGraph, section 3.3.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from optimum.dendritic import DendriticConfig
from optimum.dendritic.functional.importance import IMPORTANCE, with_dying_rows
from optimum.dendritic.functional.tiles import piece
from optimum.dendritic.nn import DendriticLayer
from optimum.dendritic.nn.weight import DendriticWeight, widths
from optimum.dendritic.state import injected_layout, layers_in
from optimum.dendritic.structure.model_costs import costs_in
from optimum.dendritic.train_steps import update_plan

EXPONENT = 4  # the weakest group shrinks 2^4 times as fast as the strongest


class GroupShrinkage(TrainerCallback):
    """`dL/dW += strength * factor * W` for every group before each optimizer step, until the masks are final.

    It follows `DendriticCallback`, which injects the layers.
    """

    def __init__(self, config: DendriticConfig, strength: float):
        self.config, self.strength, self.last = config, strength, 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        self.last = max(update_plan(self.config, state.max_steps))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ):
        if state.global_step < self.last:
            shrink_(model, self.strength)


def factors(norms: Float[Tensor, "*groups"], alive: Bool[Tensor, "*groups"]) -> Float[Tensor, "*groups"]:
    """`2^(4 (I_max - I) / (I_max - I_min))` of each group of a layer, over those that are alive (DepGraph, eq. 4).

    >>> factors(torch.tensor([1.0, 2.0, 3.0, 0.0]), torch.tensor([True, True, True, False]))
    tensor([16.,  4.,  1.,  0.])
    """
    low, high = norms[alive].min(), norms[alive].max()
    exponents = EXPONENT * (high - norms) / (high - low).clamp(min=torch.finfo(norms.dtype).tiny)
    return torch.where(alive, torch.exp2(exponents), 0)


@torch.no_grad()
def shrink_(model: nn.Module, strength: float) -> None:
    """Add the gradient of the shrinkage to those of an injected model: on the segments of every layer, and on the rows
    of other layers that die with them."""
    layout = injected_layout(model)
    layers = layers_in(model, layout)
    norms = {name: layer.reading(IMPORTANCE["magnitude"], layer.segmented()) for name, layer in layers.items()}
    dying = {name: found for name, cost in costs_in(layers, layout).items() if (found := cost.dying_rows())}
    for name, (reader, reached) in dying.items():
        norms[reader] = with_dying_rows(norms[reader].cpu(), layers[name].row_norms().cpu(), reached)
    own = {
        name: factors(norms[name].sqrt().to(layer.dendrite_mask.device), layer.dendrite_mask)
        for name, layer in layers.items()
        if layer.dendrite_mask.any()
    }
    for name, factor in own.items():
        _add_to_tiles(layers[name], strength * factor)
    for name, (reader, reached) in dying.items():
        layer = layers[name]
        if reader in own and isinstance(layer, DendriticWeight):
            per_row = own[reader].mean(0)[reached.clamp(min=0)] * (reached >= 0).to(own[reader].device)
            _add_to_rows(layer, strength * per_row)


def _add_to_tiles(layer: DendriticLayer, factor: Float[Tensor, "arbors segments"]) -> None:
    parameters = layer.segmented()
    gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    if len(gradients) < len(parameters):
        return
    for weights, gradient in zip(layer.gated(parameters), layer.gated(gradients), strict=True):
        part = factor if weights.arbors is None else factor[weights.arbors]
        part = part if weights.segments is None else part[:, weights.segments]
        gradient.tiles.add_(weights.tiles * part[:, None, :, None, None])


def _add_to_rows(layer: DendriticWeight, factor: Float[Tensor, " rows"]) -> None:
    if layer.weight.grad is None:
        return
    outputs = widths(layer)[1]
    weights, gradient = (piece(t, outputs, 1, layer.transposed).tiles for t in (layer.weight, layer.weight.grad))
    gradient.add_(weights * factor[:, None, None, None, None])
