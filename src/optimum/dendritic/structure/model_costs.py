"""What each injected layer costs, given how the layers are wired."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor, nn

from ..config import DendriticConfig
from ..functional.costs import Block, Cost, LayerCost, Link, Masks
from ..functional.other_costs import RecurrentCost, StackCost
from ..functional.selection import total_cost
from ..functional.units import units_along
from ..layout.layout import Layout
from ..layout.records import Group
from ..layout.times import Times
from ..nn import DendriticLayer, DendriticRecurrent, DendriticWeight, directions, gates, is_weight_layer, widths
from ..state import injected_layout, layers_in, split_stacks
from .input_embedding import saved_by_factors
from .rest_costs import block_of, bytes_of_rest, costs_of_rest
from .time_prices import timed_costs


def layer_costs(model: nn.Module) -> dict[str, Cost]:
    """What each injected layer of `model` costs, in units of its config's budget."""
    layout = injected_layout(model)
    return costs_in(model, layers_in(model, layout), layout)


def costs_in(model: nn.Module, layers: dict[str, DendriticLayer], layout: Layout) -> dict[str, Cost]:
    """What the `layers` of an injected model cost, as `layer_costs`."""
    stacks = split_stacks(layers)[0]
    about = {"positions": layout.positions, "config": layout.config, "times": layout.times}
    return costs_of(model, layers, layout.groups, stacks=stacks, **about)


def dense_cost_of(
    model: nn.Module,
    dense: Masks,
    costs: Mapping[str, Cost],
    *,
    config: DendriticConfig,
    positions: Mapping[str, int],
    factored: Mapping[str, int],
) -> int:
    """What the model costs before anything is taken from it, its embedding one table among it.

    Args:
        dense: masks of which nothing is pruned.
        factored: the ranks of embeddings that have become two factors, by their names.
    """
    saved = saved_by_factors(model, factored, counted=config.counted, positions=positions)
    return total_cost(dense, costs) + saved


def costs_of(
    model: nn.Module,
    layers: dict[str, DendriticLayer],
    groups: tuple[Group, ...],
    *,
    positions: dict[str, int],
    config: DendriticConfig,
    stacks: Collection[str],
    times: Times | None = None,
) -> dict[str, Cost]:
    """What each of `layers` and `stacks` costs, in units of the config's budget; and with the scope `"model"` what
    everything else in the model costs.

    Args:
        model: the model that the layers are of, or will be of.
        groups: which rows and inputs of the layers die together.
        positions: how often each layer multiplies in one sample; needed for MACs alone.
        stacks: names of the stacks of blocks, which may or may not be among `layers`.
        times: the measured table; needed for times alone.
    """
    if times is not None:
        every = {name: module for name, module in model.named_modules() if is_weight_layer(module)}
        return timed_costs(model, layers, groups, times, *_links(layers, groups, every | layers))
    feeds, reads = _links(layers, groups, layers)
    macs, costs = config.counted == "macs", dict[str, Cost]({name: StackCost() for name in stacks})
    in_bytes = config.counted == "bytes"
    scattering = {member.name for group in groups if not group.cut for member in group.producers}
    for name, layer in layers.items():
        if name in stacks:
            continue
        place = Place(
            products=positions[name] if macs else next(layer.parameters()).element_size() if in_bytes else 1,
            macs=macs,
            index=8 if in_bytes else 0,
            scatters=name in scattering,
            feeds=feeds.get(name, ()),
            reads=reads.get(name),
            block=block_of(name, stacks),
        )
        costs[name] = _cost(layer, place)
    if in_bytes:
        costs |= bytes_of_rest(model, layers, groups, stacks)
    elif config.counts_model:
        costs |= costs_of_rest(model, layers, groups, stacks=stacks, positions=positions if macs else None)
    return costs


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a layer stands in its model.

    Attributes:
        products: How often each of its weights multiplies in one sample; 1 where parameters are counted, and the size
            of one where bytes are.
        macs: Whether multiply-accumulates are counted, and not parameters or bytes.
        index: What an index costs.
        scatters: Whether its rows die in a tensor that keeps its width.
        feeds: With which segments of other layers, or units of groups, its rows die.
        reads: With which units of a group its inputs die; None unless it is a consumer of a group that is cut.
        block: The block that it stands in; None outside of stacks.
    """

    products: int
    macs: bool
    index: int
    scatters: bool
    feeds: tuple[Link, ...]
    reads: Link | None
    block: Block | None


@singledispatch
def _cost(layer: DendriticLayer, place: Place) -> Cost:
    """What one layer costs; each kind of layer has a function of its own."""
    raise AssertionError(f"{type(layer).__name__} has no cost")


@_cost.register(DendriticRecurrent)
def _(layer: DendriticRecurrent, place: Place) -> Cost:
    return RecurrentCost(
        inputs=layer.input_size,
        layers=layer.num_layers,
        directions=directions(layer),
        gates=gates(layer),
        per_weight=place.products,
        per_row=2 * place.products if layer.bias and not place.macs else 0,
        per_index=place.index,
        hidden=layer.hidden_size,
    )


@_cost.register(DendriticWeight)
def _(layer: DendriticWeight, place: Place) -> Cost:
    inputs, rows = widths(layer)
    rank = 0 if layer.sprout is None else layer.sprout.rank
    reads = place.reads or (None if layer.dendrite_mask.numel() else _reads_all(inputs))
    return LayerCost(
        rows=rows,
        segment_size=0 if reads else layer.segment_size,
        per_weight=layer.weight.shape[2:].numel() * place.products,
        per_row=0 if place.macs or layer.bias is None else place.products,
        per_index=place.index,
        scatters=place.scatters,
        feeds=place.feeds,
        reads=reads,
        sprout=rank * inputs * place.products,
        sprout_row=place.products * (rank + bool(rank) * (not place.macs)),  # a gate is not a product of a matrix
        block=place.block,
    )


def _links(
    layers: Mapping[str, DendriticLayer], groups: Iterable[Group], counted: Mapping[str, nn.Module]
) -> tuple[dict[str, tuple[Link, ...]], dict[str, Link]]:
    """With what the rows and the inputs of each of the `counted` layers die, of which `layers` are pruned."""
    feeds: dict[str, tuple[Link, ...]] = {}
    reads: dict[str, Link] = {}
    for group in groups:
        host = layers[group.host]
        assert isinstance(host, DendriticWeight)
        segment = torch.arange(group.units) if group.cut else _segment_of_units(host, group)
        for member in group.producers:
            if (layer := counted.get(member.name)) is not None:
                link = _link(group.host, segment, units_along(member.runs, widths(layer)[1]))
                feeds[member.name] = (*feeds.get(member.name, ()), link)
        for member in group.consumers if group.cut else ():
            if (layer := counted.get(member.name)) is not None:
                reads[member.name] = _link(group.host, segment, units_along(member.runs, widths(layer)[0]))
    return feeds, reads


def _link(host: str, segment: Tensor, units: Tensor) -> Link:
    return Link(host=host, segments=torch.where(units < 0, -1, segment[units.clamp(min=0)]))


def _segment_of_units(host: DendriticWeight, group: Group) -> Tensor:
    """The segment of its one consumer that each unit of a group lies in, where the group is not cut."""
    units = units_along(group.consumers[0].runs, widths(host)[0])
    segment, read = torch.zeros(group.units, dtype=torch.int64), units >= 0
    segment[units[read]] = torch.arange(len(units))[read] // host.segment_size
    return segment


def _reads_all(inputs: int) -> Link:
    """That so many inputs stay."""
    return Link(host="", segments=torch.full((inputs,), -1, dtype=torch.int64))
