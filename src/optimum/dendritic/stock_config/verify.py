"""The proof of a dial: does the stock model of the changed config compute what the pruned model does?

Half of the units of each member are taken away, then the other half, so that every block of a stack is missing once.
The pruned model is the same one with gathers and scatters instead of smaller tensors, and with hooks that let blocks be
skipped; the stock model is built from the changed config on the sliced tensors.
"""

from collections import ChainMap
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ..functional.units import units_along
from ..layout.records import Dial, Group
from ..nn import weight_layer, widths
from ..nn.pack_model import pack_modules
from ..structure.stacks import skipping
from ..structure.verification import answers, answers_alike, exchanged
from .fields import UnsupportedConfig, changed, dial_values
from .models import assemble, same_blocks, stacks_kept

logger = logging.get_logger(__name__)


def kept_of(model: nn.Module, group: Group, units: Sequence[int]) -> dict[str, list[torch.Tensor]]:
    """What the layers of a group of one consumer read when that keeps some units."""
    own = units_along(group.consumers[0].runs, widths(weight_layer(model, group.host))[0])
    kept = {p.name: [torch.arange(widths(weight_layer(model, p.name))[0])] for p in group.producers}
    return kept | {group.host: [torch.isin(own, torch.tensor(list(units))).nonzero().flatten()]}


def proved_together(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    dials: Sequence[Dial],
    readers: Mapping[str, Group],
    units: Mapping[str, int],
) -> tuple[Dial, ...]:
    """As many of the dials, from the first on, as hold together."""
    if len(dials) < 2 or holds(model, inputs, dials, readers, units):
        return tuple(dials)
    chosen: list[Dial] = []
    for dial in dials:
        if holds(model, inputs, [*chosen, dial], readers, units):
            chosen.append(dial)
        else:
            logger.info(f"{'/'.join(dial.fields)} is left alone: it does not go together with the others")
    return tuple(chosen)


def holds(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    dials: Sequence[Dial],
    readers: Mapping[str, Group],
    units: Mapping[str, int],
) -> bool:
    """Whether the stock model of the changed config computes what the pruned model does; each unit is missing once."""
    parts = [[(dial, _part(dial, units, odd)) for dial in dials] for odd in (0, 1)]
    return all(_holds_at(model, inputs, part, readers, units) for part in parts)


def _part(dial: Dial, units: Mapping[str, int], odd: int) -> list[int]:
    """Every other unit, or as near to it as the config admits."""
    size = units[dial.members[0]]
    half = list(range(odd, size, 2)) or [0]
    if not dial.counts or len(half) in dial.counts:
        return half
    return list(range(size))[-max(count for count in dial.counts if count < size) :]


def _holds_at(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    dials: Sequence[tuple[Dial, list[int]]],
    readers: Mapping[str, Group],
    units: Mapping[str, int],
) -> bool:
    chosen = {member: kept for dial, kept in dials for member in dial.members}
    stacks, groups = stacks_kept(dials, model), [readers[name] for name in chosen if name in readers]
    producing = {name: kept for group in groups for name, kept in kept_of(model, group, chosen[group.host]).items()}
    kept = producing | {group.host: kept_of(model, group, chosen[group.host])[group.host] for group in groups}
    skipped = [f"{name}.{i}" for name, left in stacks.items() for i in set(range(units[name])) - set(left)]
    try:
        values = {dial: dial_values(model.config, dial, units[dial.members[0]], left) for dial, left in dials}
        fewer = [value for dial, value in values.items() if dial.members[0] in stacks]
        if stacks and not same_blocks(
            model, assemble(model, changed(model.config, dict(ChainMap(*fewer))), stacks), stacks
        ):
            logger.info(f"The blocks of {', '.join(stacks)} are not made alike")
            return False
        with exchanged(model, pack_modules(model, kept, groups).modules):
            small = assemble(model, changed(model.config, dict(ChainMap(*values.values()))), stacks)
    except UnsupportedConfig as error:
        logger.info(f"Turning {', '.join(chain(*(d.fields for d, _ in dials)))} failed: {error}")
        return False
    with exchanged(model, pack_modules(model, kept, []).modules), skipping(model, skipped):
        expected = answers(model, inputs)
    return expected is not None and answers_alike(small, inputs, expected, like=next(model.parameters()))
