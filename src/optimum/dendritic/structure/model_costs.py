"""What each injected layer costs, given how the layers are wired."""

from collections.abc import Collection

from torch import nn

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
        bundles: which layers' rows die with the inputs of which reader.
        positions: how often each layer multiplies in one sample; needed for MACs alone.
        stacks: names of the stacks of blocks, which may or may not be among `layers`.
    """
    fed = {wire.name: (bundle.reader, wire.runs) for bundle in bundles for wire in bundle.producers}
    macs, costs = config.budget == "macs", dict[str, Cost]({name: StackCost() for name in stacks})
    for name, layer in layers.items():
        if name in stacks:
            continue
        products = positions[name] if macs else 1
        if isinstance(layer, DendriticRecurrent):
            costs[name] = RecurrentCost(
                inputs=layer.input_size,
                layers=layer.num_layers,
                directions=directions(layer),
                gates=gates(layer),
                per_weight=products,
                per_row=2 if layer.bias and not macs else 0,
            )
        elif isinstance(layer, DendriticWeight):
            inputs, rows = widths(layer)
            reader, runs = fed.get(name, (None, ()))
            read = layers[reader] if reader else None
            rank = 0 if layer.sprout is None else layer.sprout.rank
            stack = next((stack for stack in stacks if name.startswith(f"{stack}.")), None)
            costs[name] = LayerCost(
                rows=rows,
                segment_size=layer.segment_size,
                per_weight=layer.weight.shape[2:].numel() * products,
                per_row=0 if macs or layer.bias is None else 1,
                reader=reader,
                reached=segments_reached(runs, rows, read.segment_size) if isinstance(read, DendriticWeight) else None,
                sprout=rank * inputs * products,
                sprout_row=rank * products + (0 if macs or not rank else 1),  # its gate is not a product of a matrix
                stack=stack,
                place=int(name[len(stack) + 1 :].split(".")[0]) if stack else 0,
            )
    return costs
