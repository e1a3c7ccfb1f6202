"""What layers cost, in units of the budget: parameters, or multiply-accumulates of one sample.

A cost is counted exactly as in the packed model. What a layer costs may depend on another layer's mask, too: rows that
lead to pruned inputs die.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Masks = Mapping[str, Bool[Tensor, "arbors segments"]]


class Cost(ABC):
    """What one layer costs, by its name in `masks`."""

    @abstractmethod
    def cost(self, masks: Masks, name: str) -> int:
        """The cost of the packed layer."""

    @abstractmethod
    def saved(self, masks: Masks, name: str) -> dict[str, float]:
        """For each layer whose mask matters here, what one more pruned unit of it (a segment of every arbor) saves now.

        It is positive for the layer itself, unless that is in a skipped block, so that scores can be divided by it.
        """

    def dying_rows(self) -> tuple[str, Int[Tensor, " rows"]] | None:
        """The reader whose pruned inputs remove rows of this layer, and its segment that each row reaches, -1 where the
        row is never removed; None without such a reader."""
        return None

    def alive_rows(self, masks: Masks) -> Bool[Tensor, " rows"]:
        """Which outputs are left; empty for a layer that has no rows of its own to lose."""
        return torch.ones(0, dtype=torch.bool)

    def sprout_cost(self, masks: Masks, name: str) -> int:
        """What its sprout costs; 0 where it has none, and where the sprout costs more than what is pruned."""
        return 0


@dataclass(frozen=True, kw_only=True)
class LayerCost(Cost):
    """What a layer costs in units of the budget (parameters, or multiply-accumulates of one sample).

    Attributes:
        rows: The number of outputs of the full layer.
        segment_size: The number of inputs in one segment.
        per_weight: The cost of one pair of an input and an output, with its kernel.
        per_row: The cost of one output besides, such as its bias.
        reader: The name of the layer whose pruned inputs remove rows of this one; None where no layer does.
        reached: The segment of the reader that each row reaches, -1 where the row is never removed; None without one.
        sprout: The part of the cost of the sprout that does not depend on the rows that are left; 0 without a sprout.
        sprout_row: The cost of the sprout for each row that is left; 0 without a sprout.
        stack: The name of the stack of blocks that the layer is part of; None outside of stacks.
        place: The index of its block in that stack. The layer goes with its block.
    """

    rows: int
    segment_size: int
    per_weight: int
    per_row: int
    reader: str | None = None
    reached: Int[Tensor, " rows"] | None = None
    sprout: int = 0
    sprout_row: int = 0
    stack: str | None = None
    place: int = 0

    def cost(self, masks: Masks, name: str) -> int:
        if not self.exists(masks):
            return 0
        rows = self._alive_of_arbors(masks, name)
        pairs = int((masks[name].sum(1) * self.segment_size * rows).sum())
        return pairs * self.per_weight + int(rows.sum()) * self.per_row + self.sprout_cost(masks, name)

    def sprout_cost(self, masks: Masks, name: str) -> int:
        """What the sprout costs; 0 where it would cost as much as what is pruned of the rows that are left: then it is
        inactive."""
        rows = self._alive_of_arbors(masks, name)
        sprout = self.sprout + int(rows.sum()) * self.sprout_row
        pruned = int(((~masks[name]).sum(1) * self.segment_size * rows).sum()) * self.per_weight
        return sprout if sprout < pruned else 0

    def exists(self, masks: Masks) -> bool:
        """Whether its block, if it is part of one, is kept."""
        return self.stack is None or bool(masks[self.stack][0, self.place])

    def saved(self, masks: Masks, name: str) -> dict[str, float]:
        """Its own columns; for the reader, the rows that go with a segment; for the stack, a share of a mean block."""
        if not self.exists(masks):
            return {}
        rows = max(1, int(self.alive_rows(masks).sum()))
        saved = {name: float(self.segment_size * self.per_weight * rows)}
        if self.reader is not None:
            dying = self.rows / masks[self.reader].shape[1]
            kept = int(masks[name][0].sum()) * self.segment_size
            saved[self.reader] = dying * (kept * self.per_weight + self.per_row)
        if self.stack is not None:
            saved[self.stack] = self.cost(masks, name) / int(masks[self.stack].sum())
        return saved

    def dying_rows(self) -> tuple[str, Int[Tensor, " rows"]] | None:
        return None if self.reader is None or self.reached is None else (self.reader, self.reached)

    def alive_rows(self, masks: Masks) -> Bool[Tensor, " rows"]:
        """Which outputs still reach a kept segment of the reader."""
        if self.reader is None or self.reached is None:
            return torch.ones(self.rows, dtype=torch.bool)
        return masks[self.reader].any(0)[self.reached.clamp(min=0)] | (self.reached < 0)

    def _alive_of_arbors(self, masks: Masks, name: str) -> Tensor:
        """How many outputs of each arbor are alive, `[arbors]`."""
        return self.alive_rows(masks).unflatten(0, (masks[name].shape[0], -1)).sum(1)


@dataclass(frozen=True)
class StackCost(Cost):
    """What a stack of blocks costs: nothing beside its layers, each of which says what it saves with its block."""

    def cost(self, masks: Masks, name: str) -> int:
        return 0

    def saved(self, masks: Masks, name: str) -> dict[str, float]:
        return {}


@dataclass(frozen=True, kw_only=True)
class RecurrentCost(Cost):
    """What an LSTM or GRU costs; a unit is one hidden unit of every direction of every layer.

    Attributes:
        inputs: The width of its input, which is not pruned.
        layers: The number of layers that stand one upon another.
        directions: The number of directions of each layer, 1 or 2.
        gates: The number of gates of one unit: 4 of an LSTM, 3 of a GRU.
        per_weight: The cost of one weight.
        per_row: The cost of one row of a gate besides, which is that of its two biases.
    """

    inputs: int
    layers: int
    directions: int
    gates: int
    per_weight: int
    per_row: int

    def cost(self, masks: Masks, name: str) -> int:
        return self._cost(int(masks[name][0].sum()))

    def saved(self, masks: Masks, name: str) -> dict[str, float]:
        """A row and a column of each gate: one unit costs the more, the more units there are."""
        units = max(1, int(masks[name][0].sum()))
        return {name: float(self._cost(units) - self._cost(units - 1))}

    def _cost(self, units: int) -> int:
        """Each unit's rows read the input or the layer below, and the units of their own direction.

        >>> RecurrentCost(inputs=5, layers=2, directions=2, gates=4, per_weight=1, per_row=2)._cost(3) == sum(
        ...     p.numel() for p in torch.nn.LSTM(5, 3, num_layers=2, bidirectional=True).parameters()
        ... )
        True
        """
        read = self.inputs + units + (self.layers - 1) * (self.directions + 1) * units
        rows = self.directions * self.gates * units
        return rows * read * self.per_weight + rows * self.layers * self.per_row
