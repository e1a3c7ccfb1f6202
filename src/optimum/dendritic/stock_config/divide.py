"""Dials that fall into one for each layer, where a config says numbers of single layers and the model reads them.

A dial is found first, with one number for all layers. Then each layer is given numbers of its own, which are the dial
of those members whose tensors change. The classes that read no numbers of single layers raise, so that one model on the
meta device tells. Layers that go take what the config says of them along.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers.utils import logging

from ..layout.records import Dial
from .attempts import Prove
from .changes import Blueprint, Change, merged
from .fields import UnsupportedConfig, numbers_of
from .per_layer import beside, layers_of
from .verify import holds, size_of

logger = logging.get_logger(__name__)


def divided(blueprint: Blueprint, inputs: Mapping[str, Any], dials: Sequence[Dial], proved: Prove) -> list[Dial]:
    """The dials; in the place of each that can be divided, one for each layer, `proved` alone and together.

    Args:
        inputs: keyword arguments of `model.forward`.
    """
    parts = {dial: _parts(blueprint, dial, proved) for dial in dials}
    for dial, found in parts.items():
        if found and not holds(blueprint.model, blueprint.config, inputs, found, blueprint.readers, blueprint.units):
            parts[dial] = []
    said = {beside(part.fields[0])[0] for found in parts.values() for part in found}
    return [each for dial, found in parts.items() for each in found or [_with_layers(blueprint, dial, said)]]


def _parts(blueprint: Blueprint, dial: Dial, proved: Prove) -> list[Dial]:
    """A dial for each layer that has members of `dial`; none where that cannot be divided."""
    size, left, parts = size_of(dial, blueprint.units), dict[str, Change](), list[Dial]()
    try:
        for paths in _paths_of_layers(blueprint, dial):
            count = max(count for count in dial.counts or range(size) if count < size)
            change = blueprint.says(paths, (), size, count)
            left = left or {member: blueprint.without([member], size, count) for member in dial.members}
            found = {member: want for member, want in left.items() if want and want.items() <= change.items()}
            if not found:
                continue  # it is a layer of another kind
            part = proved(paths, (), [*found]) if change == merged(found.values()) else None
            if part is None:
                return []
            left, parts = {member: want for member, want in left.items() if member not in found}, [*parts, part]
            if not left:
                return parts if len(parts) > 1 else []
    except UnsupportedConfig as error:
        logger.info(f"{'/'.join(dial.fields)} is one number for all layers: {error}")
    return []


def _paths_of_layers(blueprint: Blueprint, dial: Dial) -> list[list[str]]:
    """Of each layer that has as many units the paths of its own numbers of a dial; nothing of a dial of blocks, or of
    fields of two configs."""
    numbers, size = numbers_of(blueprint.config), size_of(dial, blueprint.units)
    fields = dict.fromkeys(beside(path) for path in dial.fields)
    if len({where for where, _ in fields}) > 1 or not blueprint.readers.keys() >= {*dial.members}:
        return []
    layers = layers_of(blueprint.config).get(next(iter(fields))[0], [])
    paths = [[f"{where}.{layer}.{name}" for where, name in fields] for layer in range(len(layers))]
    return [own for own in paths if all(path in numbers and numbers[path] % size == 0 for path in own)]


def _with_layers(blueprint: Blueprint, dial: Dial, said: Collection[str]) -> Dial:
    """A dial of blocks, with what the config says of each of them, if that is among `said`; another dial as it is."""
    where, _ = beside(dial.fields[0])
    if where not in {*said} - {*dial.lists} or not blueprint.readers.keys().isdisjoint(dial.members):
        return dial
    same = len(layers_of(blueprint.config)[where]) == size_of(dial, blueprint.units)
    return replace(dial, lists=(*dial.lists, where)) if same else dial
