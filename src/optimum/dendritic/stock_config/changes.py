"""What becomes of a model's tensors when units of it go, and when numbers of its config change: their shapes alone.

Nothing is computed: both are read from models on the meta device.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..layout.records import Dial, Group
from ..nn.pack_model import pack_modules
from .fields import UnsupportedConfig, changed, dial_values
from .models import Shapes, shapes, skeleton
from .verify import kept_of

Change = dict[str, torch.Size | None]  # tensor -> its new shape, None where it goes


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """A model as its shapes, and what of it a dial may say.

    Attributes:
        model: The model.
        config: Its config, with the fields set that are None in it and are dials: other numbers do not move them.
        empty: The same one on the meta device.
        readers: The groups that may be members of dials, by their hosts.
        units: How many units each possible member has: a group, by its host, or a stack of blocks.
    """

    model: PreTrainedModel
    config: PreTrainedConfig
    empty: PreTrainedModel
    readers: Mapping[str, Group]
    units: Mapping[str, int]

    @property
    def before(self) -> Shapes:
        """The shapes of all tensors as they are."""
        return shapes(self.empty)

    def without(self, members: Iterable[str], size: int, count: int) -> Change:
        """The change when `count` of every `size` units of these members are left."""
        before, left = self.before, {member: self.units[member] * count // size for member in members}
        gone = tuple(f"{m}.{i}." for m in left if m not in self.readers for i in range(left[m], self.units[m]))
        groups = [self.readers[member] for member in left if member in self.readers]
        kept = {g.host: kept_of(self.empty, g, range(g.units - left[g.host], g.units)) for g in groups}
        packed = pack_modules(self.empty, kept, groups)
        after = {f"{n}.{key}": shape for n, module in packed.modules.items() for key, shape in shapes(module).items()}
        after |= {name: parameter.shape for name, parameter in packed.parameters.items()}
        changed_: Change = {name: shape for name, shape in after.items() if before.get(name) != shape}
        return changed_ | {name: None for name in before if gone and name.startswith(gone)}

    def turned(self, fields: Sequence[str], lists: Sequence[str], size: int, count: int) -> Change:
        """The change when numbers of the config say that `count` of `size` units are left; empty where it refuses."""
        try:
            return self.says(fields, lists, size, count)
        except UnsupportedConfig:
            return {}

    def says(self, fields: Sequence[str], lists: Sequence[str], size: int, count: int) -> Change:
        """As `turned`.

        Raises:
            UnsupportedConfig: the config does not admit the numbers, or the class builds no model of them.
        """
        dial = Dial(fields=tuple(fields), members=(), counts=(), lists=tuple(lists))
        values = dial_values(self.config, dial, size, range(count))
        before, after = self.before, shapes(skeleton(self.model, changed(self.config, values)))
        return {name: after.get(name) for name in before.keys() | after.keys() if before.get(name) != after.get(name)}

    def with_set(self, dial: Dial, size: int) -> "Blueprint":
        """The same one when a dial has been found: its fields have the values of a model that has all of its units."""
        return replace(self, config=changed(self.config, dial_values(self.config, dial, size, range(size))))


def merged(changes: Iterable[Change]) -> Change:
    """All of them at once."""
    return dict(chain.from_iterable(change.items() for change in changes))
