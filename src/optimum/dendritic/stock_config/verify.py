"""The proof of a dial: does the stock model of the changed config compute what the pruned model does?

Half of the units of each member are taken away, then the other half, so that every block of a stack is missing once.
The pruned model is the same one with gathers and scatters instead of smaller tensors (streams are cut, as their norms
read what is left), and with hooks that let blocks be skipped; the stock model is built from the changed config on the
sliced tensors.
"""

from collections import ChainMap
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from ..functional.units import units_along
from ..layout.records import Dial, Group
from ..nn import weight_layer, widths
from ..nn.pack_model import can_stay_wide, pack_modules
from ..structure.stacks import skipping
from ..structure.verification import answers, answers_alike, exchanged
from .fields import UnsupportedConfig, changed, dial_values
from .models import assemble, same_blocks, stacks_kept
from .rescale import keep_scales_

logger = logging.get_logger(__name__)


def kept_of(model: nn.Module, group: Group, units: Sequence[int]) -> list[torch.Tensor]:
    """What the first consumer of a group, all of whose inputs belong to it, reads when that keeps some units."""
    own = units_along(group.consumers[0].runs, widths(weight_layer(model, group.host))[0])
    return [torch.isin(own, torch.tensor(list(units))).nonzero().flatten()]


def size_of(dial: Dial, units: Mapping[str, int]) -> int:
    """The units of a dial: those of its member that has the fewest. Of another one several go with each."""
    return min(units[member] for member in dial.members)


def proved_together(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    dials: Sequence[Dial],
    readers: Mapping[str, Group],
    units: Mapping[str, int],
) -> tuple[Dial, ...]:
    """As many of the dials, from the first on, as hold together."""
    if len(dials) < 2 or holds(model, model.config, inputs, dials, readers, units):
        return tuple(dials)
    chosen: list[Dial] = []
    for dial in dials:
        if holds(model, model.config, inputs, [*chosen, dial], readers, units):
            chosen.append(dial)
        else:
            logger.info(f"{'/'.join(dial.fields)} is left alone: it does not go together with the others")
    return tuple(chosen)


def holds(
    model: PreTrainedModel,
    config: PreTrainedConfig,
    inputs: Mapping[str, Any],
    dials: Sequence[Dial],
    readers: Mapping[str, Group],
    units: Mapping[str, int],
) -> bool:
    """Whether the stock model of the changed `config` computes what the pruned one does; each unit is missing once."""
    return all(_holds_at(model, config, inputs, dials, readers, _parts(dials, units, odd), units) for odd in (0, 1))


def _parts(dials: Sequence[Dial], units: Mapping[str, int], odd: int) -> dict[str, list[int]]:
    """The units that each member keeps: every other one, or as near to that as the config admits."""
    parts: dict[str, list[int]] = {}
    for dial in dials:
        size = size_of(dial, units)
        count = len(range(odd, size, 2)) or 1
        if dial.counts and count not in dial.counts:
            count = max(count for count in dial.counts if count < size)
        for member in dial.members:
            ordered = [*range(odd, units[member], 2), *range(1 - odd, units[member], 2)]
            parts[member] = sorted(ordered[: count * units[member] // size])
    return parts


def _holds_at(
    model: PreTrainedModel,
    config: PreTrainedConfig,
    inputs: Mapping[str, Any],
    dials: Sequence[Dial],
    readers: Mapping[str, Group],
    parts: Mapping[str, Sequence[int]],
    units: Mapping[str, int],
) -> bool:
    left = {dial: parts[min(dial.members, key=lambda member: len(parts[member]))] for dial in dials}
    stacks, groups = stacks_kept(left.items(), model), [readers[name] for name in parts if name in readers]
    kept = {group.host: kept_of(model, group, parts[group.host]) for group in groups}
    skipped = [f"{name}.{i}" for name, blocks in stacks.items() for i in set(range(units[name])) - set(blocks)]
    try:
        values = {dial: dial_values(config, dial, size_of(dial, units), left[dial]) for dial in dials}
        fewer = [value for dial, value in values.items() if dial.members[0] in stacks]
        if stacks and not same_blocks(model, assemble(model, changed(config, dict(ChainMap(*fewer))), stacks), stacks):
            logger.info(f"The blocks of {', '.join(stacks)} are not made alike")
            return False
        packed = pack_modules(model, kept, groups)
        with exchanged(model, packed.modules, packed.parameters):
            small = assemble(model, changed(config, dict(ChainMap(*values.values()))), stacks)
            keep_scales_(small, model, stacks, inputs)
    except UnsupportedConfig as error:
        logger.info(f"Turning {', '.join(chain(*(dial.fields for dial in dials)))} failed: {error}")
        return False
    packed = pack_modules(model, kept, [group for group in groups if not can_stay_wide(model, group)])
    with exchanged(model, packed.modules, packed.parameters, packed.numbers), skipping(model, skipped):
        expected = answers(model, inputs)
    return expected is not None and answers_alike(small, inputs, expected, like=next(model.parameters()))
