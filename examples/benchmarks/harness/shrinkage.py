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
from optimum.dendritic.nn import Gates
from optimum.dendritic.nn.weight import DendriticWeight, widths
from optimum.dendritic.state import gates_in, injected_layout, layers_in
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
    gates = gates_in(model, layout, layers)
    norms = {name: gate.reading(IMPORTANCE["magnitude"], gate.segmented()) for name, gate in gates.items()}
    dying = [(n, link) for n, cost in costs_in(model, layers, layout).items() for link in cost.dying_rows()]
    for name, link in dying:
        norms[link.host] = with_dying_rows(norms[link.host].cpu(), layers[name].row_norms().cpu(), link.segments)
    own = {
        name: factors(norms[name].sqrt().to(gate.dendrite_mask.device), gate.dendrite_mask)
        for name, gate in gates.items()
        if gate.dendrite_mask.any()
    }
    for name, factor in own.items():
        _add_to_tiles(gates[name], strength * factor)
    for name, link in dying:
        layer = layers[name]
        if link.host in own and isinstance(layer, DendriticWeight):
            segments = link.segments.to(own[link.host].device)
            _add_to_rows(layer, strength * own[link.host].mean(0)[segments.clamp(min=0)] * (segments >= 0))


def _add_to_tiles(layer: Gates, factor: Float[Tensor, "arbors segments"]) -> None:
    parameters = layer.segmented()
    gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    if len(gradients) < len(parameters):
        return
    for weights, gradient in zip(layer.gated(parameters), layer.gated(gradients), strict=True):
        part = factor if weights.arbors is None else factor[weights.arbors]
        if weights.segments is not None:  # what is part of no unit is not shrunk
            part = torch.cat([part, part.new_zeros(len(part), 1)], 1)[:, weights.segments]
        gradient.tiles.add_(weights.tiles * part[:, None, :, None, None])


def _add_to_rows(layer: DendriticWeight, factor: Float[Tensor, " rows"]) -> None:
    if layer.weight.grad is None:
        return
    outputs = widths(layer)[1]
    weights, gradient = (piece(t, outputs, 1, layer.transposed).tiles for t in (layer.weight, layer.weight.grad))
    gradient.add_(weights * factor[:, None, None, None, None])
