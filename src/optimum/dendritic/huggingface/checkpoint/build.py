"""From a layout that was read from a file to the modules that it describes, checked against the stock model.

A layout is used only after it has been compared with the stock model that the same config.json builds (`validate.py`).
"""

import dataclasses
from collections import Counter
from collections.abc import Callable

import torch
from torch import nn

from ...functional.selection import total_cost
from ...layout.layout import Layout
from ...layout.records import Bundle, Follower, Form, Record, Recurrent, Segments, Stack, Wire
from ...layout.strict_json import bad
from ...nn import (
    inject_layer,
    inject_stack,
    packed_skeleton,
    prunable_layer,
    recurrent_layer,
    recurrent_skeleton,
    shrink_follower,
    weight_layer,
)
from ...state import layers_in, set_layout
from ...structure.model_costs import costs_in
from .validate import faults


def renamed(layout: Layout, resolve: Callable[[str], str | None]) -> Layout:
    """`layout` under the names of the model at hand; modules that `resolve` maps to None are left out, and bundles
    with them. `layout` itself where nothing changes.

    Raises:
        CheckpointError: there is no record, or two name the same module.
    """
    if not layout.modules:
        raise bad("quantization_config.modules", {}, "must record at least one module")
    bundled = {name for bundle in layout.bundles for name in _members(bundle)}
    names = {name: resolve(name) for name in [*layout.modules, *sorted(bundled - layout.modules.keys())]}
    if all(name == new for name, new in names.items()):
        return layout
    kept = {name: new for name, new in names.items() if new is not None}
    twice = [new for new, count in Counter(kept.values()).items() if count > 1]
    if twice:
        raise bad("quantization_config.modules", twice, "are named twice")
    return dataclasses.replace(
        layout,
        modules={kept[name]: record for name, record in layout.modules.items() if name in kept},
        bundles=tuple(_with_names(b, kept) for b in layout.bundles if all(name in kept for name in _members(b))),
        positions={kept[name]: count for name, count in layout.positions.items() if name in kept},
        dials=tuple(
            dataclasses.replace(dial, members=tuple(kept[name] for name in dial.members if name in kept))
            for dial in layout.dials
        ),
    )


def build(model: nn.Module, layout: Layout) -> dict[str, nn.Module]:
    """The modules that `layout` records, with the hyperparameters and device of `model`'s own; `model` is left alone.

    Raises:
        CheckpointError: the layout contradicts itself or the stock model.
    """
    for field, value, rule in faults(model, layout):
        raise bad(f"quantization_config.{field}", value, rule)
    return {name: _module(model, name, record) for name, record in layout.modules.items()}


def with_cost(model: nn.Module, layout: Layout, trusted: bool) -> Layout:
    """`layout`, recorded on the injected `model`, with the cost of its dense layers; a packed layout as it is.

    Args:
        trusted: whether the cost in the file counts these very modules and so must be right.

    Raises:
        CheckpointError: it is not.
    """
    if layout.packed or not layout.modules:
        return layout
    set_layout(model, layout)
    layers = layers_in(model, layout)
    dense = {name: torch.ones_like(layer.dendrite_mask, device="cpu") for name, layer in layers.items()}
    cost = total_cost(dense, costs_in(layers, layout))
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
        case Form():
            return packed_skeleton(weight_layer(model, name), record)
        case Recurrent():
            return recurrent_skeleton(recurrent_layer(model, name), record)
        case Follower():
            return shrink_follower(model.get_submodule(name), torch.arange(record.channels))


def _members(bundle: Bundle) -> list[str]:
    return [bundle.reader, *(wire.name for wire in (*bundle.producers, *bundle.followers))]


def _with_names(bundle: Bundle, names: dict[str, str]) -> Bundle:
    def wires(old: tuple[Wire, ...]) -> tuple[Wire, ...]:
        return tuple(Wire(names[wire.name], wire.runs) for wire in old)

    return dataclasses.replace(
        bundle, reader=names[bundle.reader], producers=wires(bundle.producers), followers=wires(bundle.followers)
    )
