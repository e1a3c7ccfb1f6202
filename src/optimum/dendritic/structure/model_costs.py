"""What each injected layer costs, given how the layers are wired."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import singledispatch

from jaxtyping import Int
from torch import Tensor, nn

from ..config import DendriticConfig
from ..functional.costs import Cost, LayerCost, RecurrentCost, StackCost
from ..layout.layout import Layout
from ..layout.records import Bundle
from ..nn import DendriticLayer, DendriticRecurrent, DendriticWeight, directions, gates, widths
from ..nn.pack_model import segments_reached
from ..state import injected_layout, layers_in, split_stacks


def layer_costs(model: nn.Module) -> dict[str, Cost]:
    """What each injected layer of `model` costs, in units of its config's budget."""
    layout = injected_layout(model)
    return costs_in(layers_in(model, layout), layout)


def costs_in(layers: dict[str, DendriticLayer], layout: Layout) -> dict[str, Cost]:
    """What the `layers` of an injected model cost, as `layer_costs`."""
    stacks = split_stacks(layers)[0]
    return costs_of(layers, layout.bundles, positions=layout.positions, config=layout.config, stacks=stacks)


def costs_of(
    layers: dict[str, DendriticLayer],
    bundles: tuple[Bundle, ...],
    *,
    positions: dict[str, int],
    config: DendriticConfig,
    stacks: Collection[str],
) -> dict[str, Cost]:
    """What each of `layers` and `stacks` costs, in units of the config's budget.

    Args:
        bundles: which layers' rows are removed with the inputs of which reader.
        positions: how often each layer multiplies in one sample; needed for MACs alone.
        stacks: names of the stacks of blocks, which may or may not be among `layers`.
    """
    runs = {wire.name: (bundle.reader, wire.runs) for bundle in bundles for wire in bundle.producers}
    macs, costs = config.budget == "macs", dict[str, Cost]({name: StackCost() for name in stacks})
    for name, layer in layers.items():
        if name in stacks:
            continue
        reader, reached = None, None
        if name in runs:
            reader, leading = runs[name]
            read = layers[reader]
            assert isinstance(layer, DendriticWeight) and isinstance(read, DendriticWeight)
            reached = segments_reached(leading, widths(layer)[1], read.segment_size)
        stack = next((stack for stack in stacks if name.startswith(f"{stack}.")), None)
        block = int(name.removeprefix(f"{stack}.").split(".")[0]) if stack else 0
        products = positions[name] if macs else 1
        place = Place(products=products, macs=macs, reader=reader, reached=reached, stack=stack, block=block)
        costs[name] = _cost(layer, place)
    return costs


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a layer stands in its model.

    Attributes:
        products: How often each of its weights multiplies in one sample; 1 where parameters are counted.
        macs: Whether multiply-accumulates are counted, and not parameters.
        reader: The name of the layer whose pruned inputs remove rows of this one; None where no layer does.
        reached: The segment of the reader that each row reaches; None without a reader.
        stack: The name of the stack of blocks that the layer is part of; None outside of stacks.
        block: The index of its block in that stack.
    """

    products: int
    macs: bool
    reader: str | None
    reached: Int[Tensor, " rows"] | None
    stack: str | None
    block: int


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
        per_row=2 if layer.bias and not place.macs else 0,
    )


@_cost.register(DendriticWeight)
def _(layer: DendriticWeight, place: Place) -> Cost:
    inputs, rows = widths(layer)
    rank = 0 if layer.sprout is None else layer.sprout.rank
    return LayerCost(
        rows=rows,
        segment_size=layer.segment_size,
        per_weight=layer.weight.shape[2:].numel() * place.products,
        per_row=0 if place.macs or layer.bias is None else 1,
        reader=place.reader,
        reached=place.reached,
        sprout=rank * inputs * place.products,
        sprout_row=rank * place.products + (0 if place.macs or not rank else 1),  # a gate is not a product of a matrix
        stack=place.stack,
        place=place.block,
    )
