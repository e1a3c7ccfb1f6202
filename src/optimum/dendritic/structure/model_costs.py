"""What each injected layer costs, given how the layers are wired."""

from collections.abc import Collection

from torch import nn

from ..config import DendriticConfig
from ..functional.costs import Cost, LayerCost, RecurrentCost, StackCost
from ..layout.records import Bundle
from ..nn import DendriticLayer, DendriticRecurrent, DendriticStack, DendriticWeight, directions, gates, widths
from ..nn.pack_model import segments_reached
from ..state import dendritic_layers, injected_layout


def layer_costs(model: nn.Module) -> dict[str, Cost]:
    """What each injected layer of `model` costs, in units of its config's budget."""
    layout = injected_layout(model)
    layers = dendritic_layers(model)
    stacks = [name for name, layer in layers.items() if isinstance(layer, DendriticStack)]
    return costs_of(layers, layout.bundles, layout.positions, layout.config, stacks)


def costs_of(
    layers: dict[str, DendriticLayer],
    bundles: tuple[Bundle, ...],
    positions: dict[str, int],
    config: DendriticConfig,
    stacks: Collection[str],
) -> dict[str, Cost]:
    fed = {wire.name: (bundle.reader, wire.runs) for bundle in bundles for wire in bundle.producers}
    macs, costs = config.budget == "macs", dict[str, Cost]({name: StackCost() for name in stacks})
    for name, layer in layers.items():
        if name in stacks:
            continue
        products = positions[name] if macs else 1
        if isinstance(layer, DendriticRecurrent):
            per_row = 2 if layer.bias and not macs else 0
            shape = (layer.input_size, layer.num_layers, directions(layer), gates(layer))
            costs[name] = RecurrentCost(*shape, products, per_row)
        elif isinstance(layer, DendriticWeight):
            rows, kernel = widths(layer)[1], layer.weight.shape[2:].numel()
            reader, runs = fed.get(name, (None, ()))
            reading = layers[reader] if reader else None
            reached = (
                segments_reached(runs, rows, reading.segment_size) if isinstance(reading, DendriticWeight) else None
            )
            per_row = 0 if macs or layer.bias is None else 1
            rank = 0 if layer.sprout is None else layer.sprout.rank
            sprout = rank * widths(layer)[0] * products
            sprout_row = rank * products + (0 if macs or not rank else 1)  # its gate is no product of a matrix
            stack = next((stack for stack in stacks if name.startswith(f"{stack}.")), None)
            place = int(name[len(stack) + 1 :].split(".")[0]) if stack else 0
            costs[name] = LayerCost(
                rows, layer.segment_size, kernel * products, per_row, reader, reached, sprout, sprout_row, stack, place
            )
    return costs
