"""Which dials a stock config has for a model, found by trial: there are no tables of families or of field names.

Pruning can remove from a model whatever its wiring allows; a stock config can express only a few things: one FFN width
for all layers, the number of heads where the width of a head is a number of its own, the number of layers. To find out,
every number of the config that could mean it is changed, one at a time, and the model is built from it on the meta
device. A number is a dial for some readers (or stacks of blocks) when exactly the tensors change that pruning them
would change, and exactly to those shapes. Several numbers are one dial when only together they do that (query heads and
key-value heads); one that is None counts, too (GPT-2's `n_inner`). Lists with one entry for each layer lose entries
with it.

Then each dial is proved: the model is built with fewer units on the real tensors, and its outputs must be those of the
pruned model; in the blocks that are left, the numbers must be the same, too. Otherwise it is not a dial. A model
without dials (ResNet, Swin: their configs say no width within a block, or one that is shared) is refused.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
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
from ..nn.pack_model import pack_modules
from ..structure.probing import quiet
from ..structure.stacks import stacks_in
from .fields import UnsupportedConfig, changed, dial_values, fields_of
from .models import Shapes, shapes, skeleton
from .verify import holds, kept_of, proved_together

logger = logging.get_logger(__name__)

Change = dict[str, torch.Size | None]  # tensor -> its new shape, None where it goes
COUNTED = 128  # of so many units each number is tried on the config; wider ones (neurons) are taken to be free
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
    readers = {group.host: group for group in groups if group.cut and _reads_nothing_else(model, group)}
    units = {name: group.units for name, group in readers.items()}
    needs_inputs = IMPORTANCE[config.importance].needs_activity  # which a stack does not have
    stacks = {} if needs_inputs else stacks_in(model, targets)
    try:
        rebuilt = shapes(skeleton(model, changed(model.config, {})))
    except UnsupportedConfig as error:
        raise invalid("native", True, str(error), REMEDY) from error
    if rebuilt != shapes(model):
        rule = f"{type(model).__name__} is not what its config says: layers were changed after it was made"
        raise invalid("native", True, rule, REMEDY)
    with quiet(model):
        found = _search(model, inputs, readers, units | stacks)
        dials = proved_together(model, inputs, found, readers, units | stacks)
    if not dials:
        rule = f"no number in {type(model.config).__name__} says the width within a layer, the heads or the layers of"
        raise invalid("native", True, f"{rule} {type(model).__name__}", REMEDY)
    logger.info(f"{type(model.config).__name__} says {', '.join('/'.join(dial.fields) for dial in dials)}.")
    return dials


def _reads_nothing_else(model: nn.Module, group: Group) -> bool:
    """Whether a group has one consumer, all of whose inputs belong to it."""
    inputs = widths(weight_layer(model, group.host))[0]
    return len(group.consumers) == 1 and bool((units_along(group.consumers[0].runs, inputs) >= 0).all())


def _search(
    model: PreTrainedModel, inputs: Mapping[str, Any], readers: Mapping[str, Group], units: Mapping[str, int]
) -> list[Dial]:
    """The dials that are each proved alone; no member has two."""
    before, dials = shapes(model), []

    def prove(fields: tuple[str, ...], lists: tuple[str, ...], members: tuple[str, ...]) -> bool:
        dial = Dial(fields=fields, members=members, counts=(), lists=lists)
        dial = replace(dial, counts=_admitted(model, dial, units[members[0]]))
        true = holds(model, inputs, [dial], readers, units)
        if true:
            dials.append(dial)
        return true

    for size in sorted(set(units.values()), reverse=True):
        for count in sorted({size - 1, size // 2, 1} - {0, size}, reverse=True):
            left = units.keys() - {member for dial in dials for member in dial.members}
            wants = {
                m: _expected(model, before, readers.get(m), m, size, count)
                for m in units
                if m in left and units[m] == size
            }
            if wants:
                _try_fields(model, before, wants, size, count, prove)
    return dials


def _expected(model: nn.Module, before: Shapes, group: Group | None, member: str, size: int, count: int) -> Change:
    """The change of the tensors when `count` of the `size` units of a member are left."""
    if group is None:
        gone = tuple(f"{member}.{index}." for index in range(count, size))
        return {name: None for name in before if name.startswith(gone)}
    packed = pack_modules(model, kept_of(model, group, range(size - count, size)), [group]).modules
    after = {f"{name}.{key}": shape for name, module in packed.items() for key, shape in shapes(module).items()}
    return {name: shape for name, shape in after.items() if before.get(name) != shape}


def _try_fields(
    model: PreTrainedModel,
    before: Shapes,
    wants: Mapping[str, Change],
    size: int,
    count: int,
    prove: Callable[[tuple[str, ...], tuple[str, ...], tuple[str, ...]], bool],
) -> None:
    """Hand to `prove` the fields, with the lists beside them, that change exactly the tensors that pruning some members
    would change: first single fields, then one group of several fields for the members that are left."""
    numbers = [path for path, value in fields_of(model.config, int).items() if value >= size and value % size == 0]
    stacked = any(None in want.values() for want in wants.values())
    moved: dict[str, Change] = {}
    for path in [*numbers, *fields_of(model.config, type(None))]:
        lists = _lists_beside(model, path, size) if stacked and path in numbers else ()
        for beside in dict.fromkeys([lists, ()]):
            moved[path] = _change(model, before, Dial(fields=(path,), members=(), counts=(), lists=beside), size, count)
            members = _reached(wants, moved[path])
            if members and moved[path] == _merged(wants[m] for m in members) and prove((path,), beside, members):
                wants = {m: want for m, want in wants.items() if m not in members}
                break
    parts = [path for path in moved if moved[path] and moved[path].items() <= _merged(wants.values()).items()]
    members = _reached(wants, _merged(moved[path] for path in parts))
    wanted = _merged(wants[m] for m in members)
    parts = [path for path in parts if moved[path].items() < wanted.items()]
    several = Dial(fields=tuple(parts), members=(), counts=(), lists=())
    if members and _change(model, before, several, size, count) == wanted:
        prove(tuple(parts), (), members)


def _reached(wants: Mapping[str, Change], change: Change) -> tuple[str, ...]:
    """The members whose whole expected change is part of `change`."""
    return tuple(m for m, want in wants.items() if want and want.items() <= change.items())


def _change(model: PreTrainedModel, before: Shapes, dial: Dial, size: int, count: int) -> Change:
    """The change of the tensors when `count` of the units of a dial are left; empty where the config refuses."""
    try:
        values = dial_values(model.config, dial, size, range(count))
        after = shapes(skeleton(model, changed(model.config, values)))
    except UnsupportedConfig:
        return {}
    return {name: after.get(name) for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def _lists_beside(model: PreTrainedModel, path: str, size: int) -> tuple[str, ...]:
    """Lists of `size` entries in the config that holds the field at `path`."""
    holder = path.rpartition(".")[0]
    lists = fields_of(model.config, list).items()
    return tuple(name for name, value in lists if len(value) == size and name.rpartition(".")[0] == holder)


def _admitted(model: PreTrainedModel, dial: Dial, size: int) -> tuple[int, ...]:
    """The numbers of units that the config admits; empty for all."""
    counts = []
    for count in range(1, size + 1) if size <= COUNTED else ():
        try:
            changed(model.config, dial_values(model.config, dial, size, range(count)))
            counts.append(count)
        except UnsupportedConfig:
            continue
    return () if len(counts) in (0, size) else tuple(counts)


def _merged(changes: Iterable[Change]) -> Change:
    return dict(chain.from_iterable(change.items() for change in changes))
