"""How much is left of each group of units: heads, neurons, channels, streams, blocks, hidden units, input segments."""

import re
from collections.abc import Mapping
from os.path import commonprefix

from torch import nn

from ..layout.layout import Layout
from ..layout.left import Left
from ..layout.records import Group
from ..nn import DendriticLayer, DendriticStack, RecurrentLayer
from ..state import gates_in, layers_in, layout_of


def groups_left(model: nn.Module) -> tuple[Left, ...]:
    """How much is left of each group of an injected, packed or loaded model, in the model's order; nothing of a stock
    model, and of one that an earlier release packed."""
    layout = layout_of(model)
    if layout is None or layout.packed:
        return () if layout is None else layout.left
    return left_in(model, layout, layers_in(model, layout))


def left_in(model: nn.Module, layout: Layout, layers: Mapping[str, DendriticLayer]) -> tuple[Left, ...]:
    """As `groups_left`, of an injected model with these layers. Layers of one part of the model that are pruned alike
    are counted together."""
    order = {name: place for place, (name, _) in enumerate(model.named_modules())}
    groups = {group.host: group for group in layout.groups if group.cut}
    counts: dict[tuple[str, str, str], tuple[int, int]] = {}
    for name, gates in gates_in(model, layout, layers).items():
        mask = gates.dendrite_mask
        if name in groups:
            key = _place_of(groups[name], order)
        elif isinstance(layers[name], DendriticStack):
            key = ("blocks", f"{name}.0", f"{name}.{mask.numel() - 1}")
        else:
            kind = "hidden units" if isinstance(layers[name], RecurrentLayer) else "inputs"
            key = (kind, part_of([name]), part_of([name]))
        units, kept = counts.get(key, (0, 0)) if key[0] in ("inputs", "hidden units") else (0, 0)
        key = key if key not in counts or units else (key[0], name, name)  # a second group of the same place
        counts[key] = (units + mask.numel(), kept + int(mask.sum()))
    return tuple(Left(kind=k, first=f, last=to, units=u, kept=left) for (k, f, to), (u, left) in counts.items())


def part_of(names: list[str]) -> str:
    """The part of a model that modules share: to its last number, as parts that repeat are numbered.

    >>> part_of(["bert.encoder.layer.0.attention.query", "bert.encoder.layer.0.attention.key"])
    'bert.encoder.layer.0'
    >>> part_of(["stages.0.layers.1.layer.0.convolution", "stages.0.layers.1.layer.1.convolution"])
    'stages.0.layers.1'
    >>> part_of(["bert.pooler.dense"]), part_of(["classifier"]), part_of(["conv1", "conv2"])
    ('bert.pooler', 'classifier', 'conv1')
    """
    parts = [name.split(".") for name in names]
    shared = ".".join(commonprefix([part[:-1] for part in parts]))
    numbered = re.match(r".*(?<![^.])\d+(?![^.])", shared)
    return numbered.group() if numbered else shared or names[0]


def _place_of(group: Group, order: Mapping[str, int]) -> tuple[str, str, str]:
    """Kind, first and last part of a group; only a stream runs through several, from its first writer to its last."""
    writers = sorted((member.name for member in group.producers if member.name in order), key=order.__getitem__)
    if group.kind == "streams" and writers:
        return group.kind, part_of(writers[:1]), part_of(writers[-1:])
    place = part_of([*writers, *(member.name for member in group.consumers)])
    return group.kind, place, place
