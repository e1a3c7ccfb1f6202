"""From a layout that was read from a file to the modules that it describes, checked against the stock model.

A layout is used only after it has been compared with the stock model that the same config.json builds (`validate.py`).
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection

import torch
from torch import nn

from ...inspection.groups import part_of
from ...layout.layout import Layout
from ...layout.left import Left
from ...layout.records import Follower, Form, Group, Member, Record, Recurrent, Segments, Skipped, Stack
from ...layout.strict_json import bad
from ...layout.times import Times
from ...nn import (
    DendriticLayer,
    SkippedBlock,
    inject_layer,
    inject_stack,
    packed_skeleton,
    prunable_layer,
    recurrent_layer,
    recurrent_skeleton,
    shrink_channels,
    weight_layer,
)
from ...nn.surgery import place, set_numbers, swap
from ...state import layers_in, set_layout
from ...structure.model_costs import costs_in, dense_cost_of
from ...structure.norms import norms_of
from .validate import faults


def renamed(layout: Layout, resolve: Callable[[str], str | None]) -> Layout:
    """`layout` under the names of the model at hand; modules that `resolve` maps to None are left out, and members of
    groups with them. `layout` itself where nothing changes.

    Raises:
        CheckpointError: there is no record, or two name the same module.
    """
    if not layout.modules:
        raise bad("quantization_config.modules", {}, "must record at least one module")
    grouped = {member.name for group in layout.groups for member in group.members}
    owners = {name.rpartition(".")[0] for name in [*_parameters(layout), *layout.numbers]} - {""}
    owners |= {*layout.factored, *(number.module for group in layout.groups for number in group.numbers)}
    others = sorted((grouped | owners) - layout.modules.keys())
    names = {name: resolve(name) for name in [*layout.modules, *others]}
    if all(name == new for name, new in names.items()):
        return layout
    kept = {name: new for name, new in names.items() if new is not None}
    twice = [new for new, count in Counter(kept.values()).items() if count > 1]
    if twice:
        raise bad("quantization_config.modules", twice, "are named twice")
    return dataclasses.replace(
        layout,
        times=None if layout.times is None else _renamed_times(layout.times, resolve),
        modules={kept[name]: record for name, record in layout.modules.items() if name in kept},
        groups=tuple(_with_names(group, kept) for group in layout.groups if group.host in kept),
        positions={kept[name]: count for name, count in layout.positions.items() if name in kept},
        dials=tuple(
            dataclasses.replace(dial, members=tuple(kept[name] for name in dial.members if name in kept))
            for dial in layout.dials
        ),
        parameters={new: layout.parameters[name] for name in layout.parameters if (new := _renamed(name, kept))},
        numbers={new: layout.numbers[name] for name in layout.numbers if (new := _renamed(name, kept))},
        factored={kept[name]: rank for name, rank in layout.factored.items() if name in kept},
        left=_renamed_parts(layout.left, kept),
    )


def build(model: nn.Module, layout: Layout) -> tuple[dict[str, nn.Module], dict[str, nn.Parameter]]:
    """The modules and the parameters that stand alone that `layout` records, with the hyperparameters and device of
    `model`'s own; `model` is left alone.

    Raises:
        CheckpointError: the layout contradicts itself or the stock model.
    """
    for field, value, rule in faults(model, layout):
        raise bad(f"quantization_config.{field}", value, rule)
    modules = {name: _module(model, name, record) for name, record in layout.modules.items()}
    layers = {name: module for name, module in modules.items() if isinstance(module, DendriticLayer)}
    parameters = {name: model.get_parameter(name) for name in layout.parameters}
    small = {n: nn.Parameter(p.new_empty(layout.parameters[n]), p.requires_grad) for n, p in parameters.items()}
    return {**modules, **norms_of(model, layout.groups, layers)}, small


def put_in(model: nn.Module, layout: Layout) -> None:
    """Put what `build` makes, and the numbers that go with it, into the stock model.

    Raises:
        CheckpointError: as `build` does. The model is then as it was.
    """
    modules, parameters = build(model, layout)
    swap(model, modules)
    place(model, parameters)
    set_numbers(model, layout.numbers)


def with_cost(model: nn.Module, layout: Layout, *, trusted: bool, tied: Collection[str] = ()) -> Layout:
    """`layout`, recorded on the injected `model`, with the cost of its dense layers; a packed layout as it is.

    Args:
        trusted: whether the cost in the file counts these very modules and so must be right.
        tied: parameters that will be those of other modules, and are counted once where parameters are counted.

    Raises:
        CheckpointError: it is not.
    """
    if layout.packed or not layout.modules:
        return layout
    set_layout(model, layout)
    layers = layers_in(model, layout)
    masks = {name: layer.dendrite_mask for name, layer in layers.items() if layer.dendrite_mask.numel()}
    dense = {name: torch.ones_like(mask, device="cpu") for name, mask in masks.items()}
    costs, factored = costs_in(model, layers, layout), layout.factored
    if layout.config.budget == "params":
        costs = {name: cost for name, cost in costs.items() if name not in tied}
    cost = dense_cost_of(model, dense, costs, config=layout.config, positions=layout.positions, factored=factored)
    if trusted and cost != layout.dense_cost:
        raise bad("quantization_config.dense_cost", layout.dense_cost, f"the recorded modules cost {cost}")
    return dataclasses.replace(layout, dense_cost=cost)


def _module(model: nn.Module, name: str, record: Record) -> nn.Module:
    match record:
        case Segments():
            layer = prunable_layer(model, name)
            return inject_layer(layer, **dataclasses.asdict(record))
        case Stack():
            stack = model.get_submodule(name)
            assert isinstance(stack, nn.ModuleList)
            return inject_stack(stack)
        case Skipped():
            return SkippedBlock(model.get_submodule(name), record.returns)
        case Form():
            return packed_skeleton(weight_layer(model, name), record)
        case Recurrent():
            return recurrent_skeleton(recurrent_layer(model, name), record)
        case Follower():
            return shrink_channels(model.get_submodule(name), torch.arange(record.channels))


def _parameters(layout: Layout) -> list[str]:
    return [*layout.parameters, *(member.name for group in layout.groups for member in group.parameters)]


def _renamed_times(times: Times, resolve: Callable[[str], str | None]) -> Times:
    """The same table under the names of the model at hand."""
    layers = {new: index for name, index in times.layers.items() if (new := resolve(name)) is not None}
    units = {new: each for name, each in times.units.items() if (new := resolve(name)) is not None}
    return dataclasses.replace(times, layers=layers, units=units)


def _renamed_parts(left: tuple[Left, ...], names: dict[str, str]) -> tuple[Left, ...]:
    """What is left of each part, under the names that parts have in the model at hand."""
    parts = {part_of([name]): part_of([new]) for name, new in names.items()}
    return tuple(
        dataclasses.replace(each, first=parts.get(each.first, each.first), last=parts.get(each.last, each.last))
        for each in left
    )


def _renamed(parameter: str, names: dict[str, str]) -> str | None:
    """The name of a parameter that stands alone, after the module that owns it; None where that is left out."""
    owner, _, own = parameter.rpartition(".")
    if not owner:
        return parameter
    return f"{names[owner]}.{own}" if owner in names else None


def _with_names(group: Group, names: dict[str, str]) -> Group:
    def members(old: tuple[Member, ...]) -> tuple[Member, ...]:
        return tuple(dataclasses.replace(member, name=names[member.name]) for member in old if member.name in names)

    alone = [(member, _renamed(member.name, names)) for member in group.parameters]
    return dataclasses.replace(
        group,
        producers=members(group.producers),
        consumers=members(group.consumers),
        passers=members(group.passers),
        parameters=tuple(dataclasses.replace(member, name=name) for member, name in alone if name is not None),
        numbers=tuple(dataclasses.replace(number, module=names[number.module]) for number in group.numbers),
    )
