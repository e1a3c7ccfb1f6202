"""Connected components of channels and inputs, and the families that they come in.

The name of an axis is that of a producer for its channels, and that of a consumer after `>` for its inputs.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..functional.codes import Reach
from ..functional.units import connected
from ..nn import widths
from .channel_reach import Reached
from .nan_tracing import Tracer

Labels = Int[Tensor, "..."]


def components(tracer: Tracer, reached: Mapping[str, Reached]) -> dict[str, Labels]:
    """The component of every channel of a producer and of every input of a layer (`>name`)."""
    inputs = {f">{name}": widths(layer)[0] for name, layer in tracer.layers.items()}
    relations = [
        (producer, f">{module}", reach)
        for producer, modules in reached.items()
        for module, reach in modules.items()
        if module in tracer.layers
    ]
    sizes = {name: tracer.widths[name] for name in reached} | inputs
    return connected([*relations, *_tied(tracer, sizes)], sizes)


def _tied(tracer: Tracer, sizes: Mapping[str, int]) -> list[tuple[str, str, Reach]]:
    """The axes that are one because modules share a weight, such as the columns of an embedding and of a tied head."""
    first: dict[tuple[int, int], str] = {}
    relations: list[tuple[str, str, Reach]] = []
    for name, module in (tracer.layers | tracer.tables).items():
        rows = () if isinstance(module, nn.Embedding) else ((int(isinstance(module, Conv1D)), name),)
        columns = (1, name) if isinstance(module, nn.Embedding) else (int(not isinstance(module, Conv1D)), f">{name}")
        for dimension, axis in (*rows, columns):
            if axis in sizes and (other := first.setdefault((id(module.weight), dimension), axis)) != axis:
                every = torch.arange(sizes[axis])
                relations.append((other, axis, Reach(every, every, width=sizes[axis])))
    return relations


def closed_components(
    tracer: Tracer, reached: Mapping[str, Reached], labels: Mapping[str, Labels], spared: Collection[str]
) -> Tensor:
    """Labels of components that stay: they reach the outputs, or a module that cannot shrink, or belong to one."""
    passing = {*tracer.layers, *tracer.followers.values(), *tracer.norms.values()}
    closed = [torch.zeros(0, dtype=torch.int64)]
    for producer, modules in reached.items():
        closed += [labels[producer][reach.channels] for module, reach in modules.items() if module not in passing]
    for name in spared:
        closed += [labels[axis] for axis in (name, f">{name}") if axis in labels]
    return torch.cat(closed).unique()


def families_of(labels: Mapping[str, Labels], closed: Tensor) -> list[Tensor]:
    """Open components by their members: the sorted labels of each family, of two or more with both ends."""
    total = 1 + max((int(own.max()) for own in labels.values() if len(own)), default=-1)
    signature, sides = torch.zeros(total, dtype=torch.int64), torch.zeros(2, total, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    for axis, own in labels.items():
        present = own.unique()
        signature[present] += torch.randint(2**62, (1,), generator=generator)  # a set of members has one sum
        sides[int(axis.startswith(">")), present] = True
    open_ = sides.all(0)
    open_[closed] = False
    chosen = open_.nonzero().flatten()
    _, family = signature[chosen].unique(return_inverse=True)
    found = [chosen[family == index] for index in range(int(family.max()) + 1 if len(family) else 0)]
    return [units for units in found if len(units) > 1]


def joined_by_consumers(families: Sequence[Tensor], labels: Mapping[str, Labels]) -> list[tuple[Tensor, list[str]]]:
    """Families that share a consumer are one group, since they share its mask: its units and the axes of its members.

    All units of a family have the same members, so that one of them tells which.
    """
    joined: list[tuple[dict[str, None], list[Tensor]]] = []
    for units in families:
        axes = {axis: None for axis, own in labels.items() if bool((own == units[0]).any())}
        parts = [units]
        consumers = {axis for axis in axes if axis[0] == ">"}
        for other in [group for group in joined if not consumers.isdisjoint(group[0])]:
            joined.remove(other)
            axes, parts = axes | other[0], parts + other[1]
        joined.append((axes, parts))
    return [(torch.cat(parts).sort().values, [axis for axis in labels if axis in axes]) for axes, parts in joined]


def units_of(own: Labels, units: Tensor) -> Labels:
    """Which of the `units` (sorted labels) each entry of an axis belongs to, -1 where to none."""
    place = torch.searchsorted(units, own).clamp(max=len(units) - 1)
    return place.where(units[place] == own, -1)
