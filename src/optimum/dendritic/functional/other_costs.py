"""What else costs something beside layers of one weight: tensors that are not targets, stacks of blocks, and recurrent
layers."""

import math
from dataclasses import dataclass

from .costs import Block, Cost, Link, Masks


@dataclass(frozen=True, kw_only=True)
class TensorCost(Cost):
    """What a tensor costs that is not a target: an embedding, a norm, the head.

    Attributes:
        each: The cost of one entry of each axis that shrinks, which is that of all there is along the others.
        links: Which units of groups the entries die with, of each axis that shrinks.
        block: The block that it goes with, if it stands in one.
    """

    each: int
    links: tuple[Link, ...] = ()
    block: Block | None = None

    def cost(self, masks: Masks, name: str) -> int:
        exists = self.block is None or self.block.kept(masks)
        return self.each * math.prod(self._lengths(masks)) if exists else 0

    def saved(self, masks: Masks, name: str) -> dict[str, float]:
        if self.block is not None and not self.block.kept(masks):
            return {}
        lengths, saved = self._lengths(masks), dict[str, float]()
        for axis, link in enumerate(self.links):
            others = math.prod(length for index, length in enumerate(lengths) if index != axis)
            saved[link.host] = saved.get(link.host, 0.0) + self.each * others * link.per_segment(masks)
        return saved if self.block is None else saved | self.block.share(self.cost(masks, name), masks)

    def _lengths(self, masks: Masks) -> list[int]:
        return [int(link.alive(masks).sum()) for link in self.links]


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
        per_index: The cost of the index of one unit that is left.
        hidden: The number of units of the full layer, which has no indices.
    """

    inputs: int
    layers: int
    directions: int
    gates: int
    per_weight: int
    per_row: int
    per_index: int = 0
    hidden: int = 0

    def cost(self, masks: Masks, name: str) -> int:
        units = int(masks[name][0].sum())
        indices = units * self.layers * self.directions if units < self.hidden else 0
        return self._cost(units) + indices * self.per_index

    def saved(self, masks: Masks, name: str) -> dict[str, float]:
        """A row and a column of each gate: one unit costs the more, the more units there are."""
        units = max(1, int(masks[name][0].sum()))
        return {name: float(self._cost(units) - self._cost(units - 1))}

    def _cost(self, units: int) -> int:
        """Each unit's rows read the input or the layer below, and the units of their own direction.

        >>> import torch
        >>> RecurrentCost(inputs=5, layers=2, directions=2, gates=4, per_weight=1, per_row=2)._cost(3) == sum(
        ...     p.numel() for p in torch.nn.LSTM(5, 3, num_layers=2, bidirectional=True).parameters()
        ... )
        True
        """
        read = self.inputs + units + (self.layers - 1) * (self.directions + 1) * units
        rows = self.directions * self.gates * units
        return rows * read * self.per_weight + rows * self.layers * self.per_row
