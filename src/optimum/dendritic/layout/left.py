"""What a layout remembers of a model that was packed: how much was left of what lives or dies whole."""

import dataclasses
from dataclasses import dataclass

from .records import KINDS
from .strict_json import bad

COUNTED = (*KINDS, "blocks", "hidden units", "inputs")  # what is pruned: groups, stacks, recurrent and other layers


@dataclass(frozen=True, kw_only=True)
class Left:
    """How much is left of what lives or dies whole, to show it.

    Attributes:
        kind: That of a dependency group, or `"blocks"` of a stack, `"hidden units"` of recurrent layers and `"inputs"`
            of layers whose input segments are pruned for each layer alone.
        units: How many there were.
        kept: How many are left.
        first: The part of the model that they begin in.
        last: The part of the model that they end in; the same one unless they run through several.
    """

    kind: str
    units: int
    kept: int
    first: str
    last: str

    @property
    def share(self) -> float:
        """What part of the units is left."""
        return self.kept / self.units

    def __post_init__(self) -> None:
        if not 0 <= self.kept <= self.units or self.units < 1 or self.kind not in COUNTED:
            rule = f"must keep at most its units, of a kind of {', '.join(COUNTED)}"
            raise bad("left", dataclasses.asdict(self), rule)
