"""The norms of groups that are cut: their statistics are those of the channels that are left."""

from collections.abc import Iterable, Mapping

from torch import nn

from ..functional.units import units_along
from ..layout.records import Group
from ..nn import DendriticLayer, channels_of, follower_channels
from ..nn.living_norm import Living, LivingNorm, living_norm


def norms_of(model: nn.Module, groups: Iterable[Group], layers: Mapping[str, DendriticLayer]) -> dict[str, LivingNorm]:
    """The norm that takes the place of each norm on the way through a group that is cut.

    Args:
        layers: the injected layers, of which the first consumer of each group holds its mask.
    """
    found: dict[str, LivingNorm] = {}
    for group in groups:
        for member in group.passers if group.cut else ():
            norm = model.get_submodule(member.name)
            if follower_channels(norm) is None:
                units = units_along(member.runs, channels_of(norm) or 0)
                found[member.name] = living_norm(norm, Living(layers[group.host], units), -1 - member.axis)
    return found
