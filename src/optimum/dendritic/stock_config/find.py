"""Which dials a stock config has for a model, found by trial: there are no tables of families or of field names.

Pruning can remove from a model whatever its wiring allows; a stock config can express only a few things: one FFN width
for all layers, the number of heads where the width of a head is a number of its own, the width of the streams, the
number of layers. To find out, every number of the config that could mean it is changed, one at a time, and the model is
built from it on the meta device. A number is a dial for some groups (or stacks of blocks) when exactly the tensors
change that pruning them would change, and exactly to those shapes. Several numbers are one dial when only together they
do that (query heads and key-value heads); one that is None counts, too (GPT-2's `n_inner`). Lists with one entry for
each layer lose entries with it. Where the config says numbers of single layers, the dial of a width is one for each.

Where a config has no number for the width of a head, it follows from the width of the stream and the number of heads.
The two are one dial, then: with each head of every layer as many channels of the stream go as a head is wide.

Then each dial is proved: the model is built with fewer units on the real tensors, and its outputs must be those of the
pruned model; in the blocks that are left, the numbers must be the same, too. Otherwise it is not a dial. A model
without dials (ResNet, Swin: their configs say no width within a block, or one that is shared) is refused.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ..config import DendriticConfig
from ..errors import invalid
from ..functional.importance import IMPORTANCE
from ..functional.units import units_along
from ..layout.records import Dial, Group
from ..nn import weight_layer, widths
from ..structure.probing import quiet
from ..structure.stacks import stacks_in
from .admission import admitted, admitted_together
from .attempts import Attempt, alone, together, with_silent
from .changes import Blueprint
from .divide import divided
from .fields import UnsupportedConfig, changed
from .models import shapes, skeleton
from .sharpen import sharpened
from .verify import holds, proved_together, size_of

logger = logging.get_logger(__name__)

REMEDY = "Leave out native=True: the packed model then loads after import optimum.dendritic."


@torch.no_grad()
def find_dials(
    model: nn.Module,
    inputs: Mapping[str, Any],
    config: DendriticConfig,
    targets: Sequence[str],
    groups: Sequence[Group],
) -> tuple[Dial, ...]:
    """The dials of a stock model, each proved.

    Args:
        inputs: keyword arguments of `model.forward`.
        targets: names of the layers that may be pruned; a block is skipped only if all its prunable layers are.
        groups: those that they read.

    Raises:
        DendriticError: the model has none: it is not a `PreTrainedModel`, its config does not rebuild it, or no number
            in the config does what pruning would do. The model is as it was.
    """
    if not isinstance(model, PreTrainedModel):
        raise invalid("native", True, f"a {type(model).__name__} has no config that could say its shape", REMEDY)
    readers = {group.host: group for group in groups if group.cut and _read_nothing_else(model, group)}
    units = {name: group.units for name, group in readers.items()}
    needs_inputs = IMPORTANCE[config.importance].needs_activity  # which a stack does not have
    stacks = {} if needs_inputs else stacks_in(model, targets)
    try:
        empty = skeleton(model, changed(model.config, {}))
    except UnsupportedConfig as error:
        raise invalid("native", True, str(error), REMEDY) from error
    if shapes(empty) != shapes(model):
        rule = f"{type(model).__name__} is not what its config says: layers were changed after it was made"
        raise invalid("native", True, rule, REMEDY)
    with quiet(model), sharpened(model):
        blueprint = Blueprint(model=model, config=model.config, empty=empty, readers=readers, units=units | stacks)
        found = _search(blueprint, inputs, {*targets, *stacks})
        found = divided(blueprint, inputs, found, partial(_proved, blueprint, inputs, {*targets, *stacks}))
        found = admitted_together(model.config, found, blueprint.units)
        dials = proved_together(model, inputs, found, readers, blueprint.units)
    if not dials:
        rule = f"no number in {type(model.config).__name__} says the width within a layer, the heads or the layers of"
        raise invalid("native", True, f"{rule} {type(model).__name__}", REMEDY)
    logger.info(f"{type(model.config).__name__} says {', '.join('/'.join(dial.fields) for dial in dials)}.")
    return dials


def _read_nothing_else(model: nn.Module, group: Group) -> bool:
    """Whether all inputs of all consumers of a group belong to it."""
    inputs = {member: widths(weight_layer(model, member.name))[0] for member in group.consumers}
    return all(bool((units_along(member.runs, width) >= 0).all()) for member, width in inputs.items())


def _search(blueprint: Blueprint, inputs: Mapping[str, Any], own: Set[str]) -> list[Dial]:
    """The dials that are each proved alone and have one of their `own` as a member; no member has two."""
    units, dials = blueprint.units, list[Dial]()

    def proved(fields: Sequence[str], lists: Sequence[str], members: Sequence[str]) -> Dial | None:
        return _proved(blueprint, inputs, own, fields, lists, members)

    for size in sorted(set(units.values()), reverse=True):
        for count in sorted({size - 1, size // 2, 1} - {0, size}, reverse=True):
            for attempt in (alone, together, with_silent):
                turned = {member for dial in dials for member in dial.members}
                left = [member for member in units if member not in turned]
                used = {field for dial in dials for field in dial.fields}
                for dial in attempt(Attempt(blueprint, left, used, size, count, proved)):
                    dials.append(dial)
                    blueprint = blueprint.with_set(dial, size)
    return dials


def _proved(
    blueprint: Blueprint,
    inputs: Mapping[str, Any],
    own: Set[str],
    fields: Sequence[str],
    lists: Sequence[str],
    members: Sequence[str],
) -> Dial | None:
    """The dial of these fields, lists beside them and members, if it is one and has one of its `own`."""
    dial = Dial(fields=tuple(fields), members=tuple(members), counts=(), lists=tuple(lists))
    dial = replace(dial, counts=admitted(blueprint.config, dial, size_of(dial, blueprint.units)))
    about = (blueprint.model, blueprint.config, inputs, [dial], blueprint.readers, blueprint.units)
    return dial if not own.isdisjoint(members) and holds(*about) else None
