"""What a packed model is held to."""

import torch
from torch import nn

from helpers.models import Inputs, outputs
from optimum.dendritic import compress_
from optimum.dendritic.functional.selection import total_cost
from optimum.dendritic.state import dendritic_layers, layout_of
from optimum.dendritic.structure.model_costs import layer_costs
from optimum.dendritic.train_steps import pruning_of


def target_cost(model: nn.Module, names: list[str], positions: dict[str, int] | None) -> int:
    """Parameters (or, given `positions`, MACs of one sample) of the layers `names`, counted in their tensors.
    Stacks, and what is in skipped blocks, cost nothing."""
    modules = dict(model.named_modules())
    names = [name for name in names if name in modules and not isinstance(modules[name], nn.ModuleList)]
    layers = [modules[name] for name in names]
    if positions is not None:
        weights = [sum(p.numel() for p in layer.parameters() if p.dim() > 1) for layer in layers]
        return sum(weight * positions[name] for name, weight in zip(names, weights, strict=True))
    return sum(p.numel() for layer in layers for p in layer.parameters())


def pack_and_check(model: nn.Module, inputs: Inputs) -> None:
    """Compress, and hold the packed model against the masked one: outputs, cost, and what was reported."""
    layout, names = layout_of(model), list(dendritic_layers(model))
    masks = {name: layer.dendrite_mask.clone() for name, layer in dendritic_layers(model).items()}
    cost, report, expected = total_cost(masks, layer_costs(model)), pruning_of(model), outputs(model, inputs)
    assert compress_(model, inputs) is model
    found = outputs(model, inputs)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    positions = layout.positions if layout.config.budget == "macs" else None
    assert target_cost(model, names, positions) == cost
    assert report.sparsity == 1 - cost / layout.dense_cost
    assert not any("dendrite" in key for key in model.state_dict())
