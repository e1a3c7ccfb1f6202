"""From what is kept to the modules that hold it: the structure of packing, without deciding anything.

A layer alone packs to gather -> product -> scatter. Along a group that can be cut, the producers' scatter and the
consumers' gather cancel: both become smaller layers, and so does everything between them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from ..distributed.dtensor import whole
from ..functional.units import living, units_along
from ..layout.records import Form, Group, Member, Recurrent
from ..unofficial import tensors_in
from . import (
    RecurrentLayer,
    SkippedBlock,
    is_recurrent_layer,
    pack_layer,
    pack_recurrent,
    recurrent_layer,
    weight_layer,
    widths,
)
from .living_norm import LivingNorm
from .per_channel import channels_of, follower_channels, shrink_channels

Kept = Mapping[str, list[Tensor]]
Alive = Mapping[str, Bool[Tensor, "..."]]


@dataclass(frozen=True)
class Packed:
    """What takes the place of what.

    Attributes:
        modules: The packed modules, by name.
        parameters: The parameters that stand alone and have become smaller, by name.
        numbers: The numbers of modules that have changed with them, by the path of the attribute.
        stacks: The stacks of blocks, some of which are skipped, by name.
        skipped: How many things each skipped block returns, by its name: see the record `Skipped`.
    """

    modules: dict[str, nn.Module]
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    stacks: dict[str, nn.Module] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Shapes:
    """What packing leaves of the axes of a model.

    Attributes:
        arrives: For each layer the ascending inputs that the incoming tensor still has.
        outputs: For each layer the ascending outputs that exist.
        narrow: The layers whose outgoing tensor has only those.
        channels: For each module between layers, and each embedding, the ascending channels that are left.
        entries: For each parameter that stands alone and each of its axes that shrinks, the ascending entries left.
    """

    arrives: dict[str, Tensor]
    outputs: dict[str, Tensor]
    narrow: set[str]
    channels: dict[str, Tensor]
    entries: dict[str, dict[int, Tensor]]


def alive_units(group: Group, kept: Int[Tensor, " kept"], inputs: int) -> Bool[Tensor, " units"]:
    """The units of a group of one consumer of which some arbor reads something."""
    units = units_along(group.consumers[0].runs, inputs)[kept]
    alive = torch.zeros(group.units, dtype=torch.bool)
    alive[units[units >= 0]] = True
    return alive


def shapes_left(model: nn.Module, layers: Iterable[str], groups: Iterable[Group], alive: Alive) -> Shapes:
    """What is left of each axis.

    Args:
        layers: names of the layers of one weight that are packed; members of groups join them.
        alive: for each group, by its host, the units that are left.
    """
    groups = list(groups)
    names = dict.fromkeys([*layers, *(m.name for g in groups for m in (*g.consumers, *_layers_of(model, g)))])
    sizes = {name: widths(weight_layer(model, name)) for name in names}
    arrives = {name: torch.ones(inputs, dtype=torch.bool) for name, (inputs, _) in sizes.items()}
    outputs = {name: torch.ones(rows, dtype=torch.bool) for name, (_, rows) in sizes.items()}
    cut = [group for group in groups if group.cut and bool(alive[group.host].any())]
    narrow = {member.name for group in cut for member in group.producers}
    channels: dict[str, Tensor] = {}
    entries: dict[str, dict[int, Tensor]] = {}
    for group in groups:
        left = alive[group.host]
        for member in _layers_of(model, group):
            if group in cut or member.name not in narrow:  # zeros are scattered into a tensor of full width, or not
                outputs[member.name] &= _left(member, len(outputs[member.name]), left)
        for member in group.consumers if group in cut else ():
            arrives[member.name] &= _left(member, len(arrives[member.name]), left)
        for member in (*group.passers, *_tables_of(model, group)) if group in cut else ():
            size = channels_of(model.get_submodule(member.name)) or 0
            channels[member.name] = _left(member, size, left).nonzero().flatten()
        for member in group.parameters if group in cut else ():
            length = model.get_parameter(member.name).shape[member.axis]
            entries.setdefault(member.name, {})[member.axis] = _left(member, length, left).nonzero().flatten()
    return Shapes(
        arrives={name: mask.nonzero().flatten() for name, mask in arrives.items()},
        outputs={name: mask.nonzero().flatten() for name, mask in outputs.items()},
        narrow=narrow & sizes.keys(),
        channels=channels,
        entries=entries,
    )


def pack_modules(model: nn.Module, kept: Kept, groups: Iterable[Group], alive: Alive | None = None) -> Packed:
    """The replacement for every layer in `kept`, and for all that shrinks with the groups.

    Args:
        kept: for each layer to pack, the ascending inputs that each of its arbors reads, or, of a recurrent layer, the
            ascending hidden units that each keeps. A consumer of a group that is cut reads all that arrives.
        groups: those whose consumers and producers all are layers or embeddings; the others are ignored.
        alive: for each group, by its host, the units that are left; default: those that its one consumer reads.
    """
    recurrent = [name for name in kept if is_recurrent_layer(model.get_submodule(name))]
    units = {name: pack_recurrent(recurrent_layer(model, name), kept[name]) for name in recurrent}
    kept = {name: keep for name, keep in kept.items() if name not in units}
    groups = list(groups)
    read = {name: torch.cat(keep).unique() for name, keep in kept.items()}
    inputs = {group.host: widths(weight_layer(model, group.host))[0] for group in groups}
    alive = {g.host: alive_units(g, read[g.host], inputs[g.host]) for g in groups} | dict(alive or {})
    left = shapes_left(model, kept, groups, alive)
    grouped = {m.name for g in groups if g.cut and bool(alive[g.host].any()) for m in g.consumers}
    tied = _gathered_once(model, [*left.arrives, *left.channels])
    layers = {
        name: pack_layer(
            weight_layer(model, name),
            [left.arrives[name]] if name in grouped else kept.get(name, [left.arrives[name]]),
            left.outputs[name],
            left.arrives[name],
            name in left.narrow,
            tied,
        )
        for name in left.arrives
    }
    between = {name: shrink_channels(_stock(model, name), keep, tied) for name, keep in left.channels.items()}
    parameters = {name: shrunk_parameter(model, name, axes) for name, axes in left.entries.items()}
    modules = layers | units | between
    _tie_again(model, modules)
    return Packed(modules, parameters, numbers_left(groups, alive))


def without_blocks(packed: Packed, stacks: Mapping[str, nn.ModuleList], skipped: Mapping[str, int]) -> Packed:
    """What is packed of a model that skips blocks: plain stacks of the blocks that are left, and of what stands for the
    others, of which nothing is packed.

    Args:
        skipped: how many things each skipped block returns, by its name.
    """
    gone = tuple(f"{name}." for name in skipped)

    def left(found: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in found.items() if not name.startswith(gone)}

    def stock(name: str, stack: nn.ModuleList) -> nn.ModuleList:
        blocks = {f"{name}.{index}": block for index, block in enumerate(stack)}
        return nn.ModuleList(
            SkippedBlock(block, skipped[path]) if path in skipped else block for path, block in blocks.items()
        )

    return Packed(
        modules=left(packed.modules),
        parameters=left(packed.parameters),
        numbers=left(packed.numbers),
        stacks={name: stock(name, stack) for name, stack in stacks.items()},
        skipped=dict(skipped),
    )


def numbers_left(groups: Iterable[Group], alive: Alive) -> dict[str, int]:
    """What becomes of the numbers that modules keep, by the path of the attribute, where groups are cut."""
    return {
        f"{number.module}.{number.name}": number.value * int(alive[group.host].sum()) // group.units
        for group in groups
        for number in group.numbers
        if group.cut and bool(alive[group.host].any())
    }


def shrunk_parameter(model: nn.Module, name: str, axes: Mapping[int, Tensor]) -> nn.Parameter:
    """A parameter that stands alone with only these entries along its axes."""
    parameter = model.get_parameter(name)
    value = whole(parameter).detach()
    for axis, keep in axes.items():
        value = value.index_select(axis, keep.to(value.device))
    return nn.Parameter(value, parameter.requires_grad)


def can_stay_wide(model: nn.Module, group: Group) -> bool:
    """Whether channels of a group may die in a tensor that keeps its width: it has one consumer, and nothing in it but
    layers and modules that treat each channel on its own."""
    passers = [model.get_submodule(member.name) for member in group.passers]
    alone = all(follower_channels(module) is not None for module in passers)
    return alone and len(group.consumers) == 1 and not group.parameters and not _tables_of(model, group)


def stock_record(layer: nn.Module) -> Form | Recurrent:
    """The record of a plain stock layer, which may be smaller than it was."""
    if isinstance(layer, RecurrentLayer):
        return Recurrent(hidden=layer.hidden_size, kept=layer.hidden_size)
    inputs, outputs = widths(layer)
    return Form(inputs=inputs, outputs=outputs, kept=inputs, arbors=(outputs,), gather=False, scatter=False)


def last_consumers(groups: Iterable[Group]) -> list[str]:
    """Consumers whose own outputs are not cut: they keep their shape and judge the whole chain before them."""
    groups = list(groups)
    cut = {producer.name for group in groups for producer in group.producers}
    return list(dict.fromkeys(m.name for group in groups for m in group.consumers if m.name not in cut))


def _stock(model: nn.Module, name: str) -> nn.Module:
    module = model.get_submodule(name)
    return module.stock() if isinstance(module, LivingNorm) else module


def _left(member: Member, length: int, alive: Bool[Tensor, " units"]) -> Bool[Tensor, " length"]:
    return living(units_along(member.runs, length), alive)


def _tables_of(model: nn.Module, group: Group) -> list[Member]:
    """The embeddings among the producers of a group."""
    return [member for member in group.producers if isinstance(model.get_submodule(member.name), nn.Embedding)]


def _layers_of(model: nn.Module, group: Group) -> list[Member]:
    """The layers among the producers of a group."""
    return [member for member in group.producers if not isinstance(model.get_submodule(member.name), nn.Embedding)]


def _gathered_once(model: nn.Module, names: Iterable[str]) -> dict[int, Tensor]:
    """The weights that several of these modules share, such as an embedding and a head, whole, by identity."""
    weights = [p for name in names for p in tensors_in(model.get_submodule(name))[0].values() if p is not None]
    times = Counter(id(parameter) for parameter in weights)
    return {id(parameter): whole(parameter) for parameter in {p for p in weights if times[id(p)] > 1}}


def _tie_again(model: nn.Module, packed: Mapping[str, nn.Module]) -> None:
    """Let packed modules share a parameter where the modules in whose places they stand share one."""
    first: dict[int, nn.Parameter] = {}
    for name, module in packed.items():
        before = tensors_in(model.get_submodule(name))[0]
        own = tensors_in(module)[0]
        for key in own.keys() & before.keys():
            if before[key] is None or own[key] is None:
                continue
            known = first.setdefault(id(before[key]), own[key])
            if known is not own[key] and known.shape == own[key].shape:
                own[key] = known
