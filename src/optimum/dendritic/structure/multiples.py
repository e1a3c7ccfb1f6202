"""How many units go together, so that widths stay multiples of a number that a device computes faster with."""

from collections.abc import Iterable, Mapping
from math import gcd, lcm

from ..functional.units import units_along
from ..layout.records import Group
from ..nn import DendriticLayer, DendriticRecurrent, DendriticWeight, widths


def units_together(layers: Mapping[str, DendriticLayer], groups: Iterable[Group], multiple_of: int) -> dict[str, int]:
    """For each layer that holds a mask, how many of its units or segments have widths that are all multiples of
    `multiple_of`. What is nothing but 1 is left out."""
    hosts = {group.host: group for group in groups}
    found: dict[str, int] = {}
    for name, layer in layers.items() if multiple_of > 1 else ():
        sizes = _sizes(layer, hosts.get(name))
        found[name] = lcm(*(multiple_of // gcd(multiple_of, size) for size in sizes))
    return found


def _sizes(layer: DendriticLayer, group: Group | None) -> set[int]:
    """How wide one unit is along each axis that shrinks with it."""
    if isinstance(layer, DendriticRecurrent):
        return {1}
    if not isinstance(layer, DendriticWeight) or not layer.dendrite_mask.numel():
        return set()
    if group is not None and group.cut:
        return {run.size for member in (*group.members, *group.parameters) for run in member.runs}
    own = {layer.segment_size}
    if group is None:
        return own
    units = units_along(group.consumers[0].runs, widths(layer)[0])
    per_segment = len(units.unflatten(0, (-1, layer.segment_size))[0].unique())
    return own | {per_segment * run.size for member in group.producers for run in member.runs}
