"""What the parts of an injected model cost where its target is a time: by the measured table in its layout."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ..functional.costs import Cost, LayerCost, Link
from ..functional.other_costs import TensorCost
from ..functional.time_costs import TimedLayer, TimedRecurrent
from ..layout.records import Group
from ..layout.times import Times
from ..nn import DendriticWeight, weight_layer, widths


def timed_costs(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    groups: Sequence[Group],
    times: Times,
    feeds: Mapping[str, tuple[Link, ...]],
    reads: Mapping[str, Link],
) -> dict[str, Cost]:
    """What each layer takes, by its name, what the units of groups take outside of layers, and what is left.

    Args:
        layers: those that are pruned, which are in the model or about to be.
        feeds: with which units the rows of each layer die.
        reads: with which units its inputs die.
    """
    costs: dict[str, Cost] = {}
    for name, index in times.layers.items():
        layer, grid = layers.get(name), times.grids[index]
        if layer is None and isinstance(model.get_submodule(name), nn.RNNBase):
            costs[name] = TensorCost(each=grid.times[-1])
        elif isinstance(layer, nn.RNNBase):
            costs[name] = TimedRecurrent(grid=grid)
        else:
            layer = weight_layer(model, name) if layer is None else layer
            costs[name] = TimedLayer(shape=_shape(layer, feeds.get(name, ()), reads.get(name)), grid=grid)
    sizes = {group.host: group.units for group in groups}
    for host, each in times.units.items():
        link = Link(host=host, segments=torch.arange(sizes[host]))
        costs[f"{host} besides"] = TensorCost(each=each, links=(link,))
    return costs | {"rest": TensorCost(each=times.rest)}


def _shape(layer: nn.Module, feeds: tuple[Link, ...], reads: Link | None) -> LayerCost:
    inputs, rows = widths(layer)
    own = isinstance(layer, DendriticWeight) and layer.dendrite_mask.numel() > 0 and reads is None
    every = Link(host="", segments=torch.full((inputs,), -1, dtype=torch.int64))
    size = layer.segment_size if own and isinstance(layer, DendriticWeight) else 0
    return LayerCost(
        rows=rows,
        segment_size=size,
        per_weight=1,
        per_row=0,
        feeds=feeds,
        reads=None if own else reads or every,
    )
