"""What layers cost, in units of the budget: parameters, multiply-accumulates of one sample, or bytes of a file.

A cost is counted exactly as in the packed model. What a layer costs may depend on another layer's mask, too: rows that
lead to pruned inputs die.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
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

    def dying_rows(self) -> tuple["Link", ...]:
        """With which segments of which layers the rows of this layer die."""
        return ()

    def alive_rows(self, masks: Masks) -> Bool[Tensor, " rows"]:
        """Which outputs are left; empty for a layer that has no rows of its own to lose."""
        return torch.ones(0, dtype=torch.bool)

    def sprout_cost(self, masks: Masks, name: str) -> int:
        """What its sprout costs; 0 where it has none, and where the sprout costs more than what is pruned."""
        return 0


@dataclass(frozen=True, kw_only=True)
class Link:
    """How an axis of a layer follows the mask of another layer, or of the group that a layer holds the mask of.

    Attributes:
        host: The layer that holds the mask; empty where every entry stays.
        segments: For each entry along the axis the segment (of any arbor) that it lives with, -1 where it always lives.
    """

    host: str
    segments: Int[Tensor, " length"]

    def alive(self, masks: Masks) -> Bool[Tensor, " length"]:
        """Which entries live with a segment that some arbor keeps."""
        if not self.host:
            return self.segments < 0
        return (self.segments < 0) | masks[self.host].any(0)[self.segments.clamp(min=0)]

    def per_segment(self, masks: Masks) -> float:
        """How many entries die with one segment, in the mean."""
        if not self.host:
            return 0.0
        return int((self.segments >= 0).sum()) / masks[self.host].shape[1]


@dataclass(frozen=True)
class Block:
    """A place in a stack of blocks that can be skipped whole: the mask of the stack, and the index in it."""

    stack: str
    index: int

    def kept(self, masks: Masks) -> bool:
        """Whether it is not skipped."""
        return bool(masks[self.stack][0, self.index])

    def share(self, cost: int, masks: Masks) -> dict[str, float]:
        """What a part of it that costs so much adds to what a block of the stack saves, in the mean of those left."""
        return {self.stack: cost / int(masks[self.stack].sum())}


@dataclass(frozen=True, kw_only=True)
class LayerCost(Cost):
    """What a layer costs in units of the budget (parameters, or multiply-accumulates of one sample).

    Attributes:
        rows: Outputs of the full layer.
        segment_size: Inputs in one segment of its own mask; 0 if it has none, because `reads` tells its inputs.
        per_weight: Cost of one input-output pair (its kernel included).
        per_row: Cost of one output besides (a bias).
        feeds: Which segments of other layers, or units of groups, its rows die with.
        reads: Which units of a group its inputs die with, if it is a consumer of a group.
        per_index: Cost of the index of one input that is gathered, or of one output that is scattered.
        scatters: Whether its outputs are scattered into a tensor of full width once some of them die.
        sprout: What the layer's sprout costs apart from its rows; 0 where it has none.
        sprout_row: What one living row of the sprout costs.
        block: The block that it goes with, if it stands in one.
    """

    rows: int
    segment_size: int
    per_weight: int
    per_row: int
    feeds: tuple[Link, ...] = ()
    reads: Link | None = None
    per_index: int = 0
    scatters: bool = False
    sprout: int = 0
    sprout_row: int = 0
    block: Block | None = None

    def cost(self, masks: Masks, name: str) -> int:
        if not self.exists(masks):
            return 0
        rows = self._alive_of_arbors(masks, name)
        pairs = int((self._inputs_of_arbors(masks, name) * rows).sum())
        weights = pairs * self.per_weight + int(rows.sum()) * self.per_row
        return weights + self._index_cost(masks, name) + self.sprout_cost(masks, name)

    def _index_cost(self, masks: Masks, name: str) -> int:
        """What the indices cost that the packed layer gathers and scatters by; arbors may turn out to share theirs."""
        if not self.per_index:
            return 0
        gathers = self.reads is None and not bool(masks[name].all())
        alive = int(self.alive_rows(masks).sum())
        scattered = alive if self.scatters and alive < self.rows else 0
        return self.per_index * (gathers * int(self._inputs_of_arbors(masks, name).sum()) + scattered)

    def sprout_cost(self, masks: Masks, name: str) -> int:
        """What the sprout costs; 0 where it would cost as much as what is pruned of the living rows: none grows."""
        if self.reads is not None:
            return 0
        rows = self._alive_of_arbors(masks, name)
        sprout = self.sprout + int(rows.sum()) * self.sprout_row
        pruned = int(((~masks[name]).sum(1) * self.segment_size * rows).sum()) * self.per_weight
        return sprout if sprout < pruned else 0

    def size(self, masks: Masks, name: str) -> tuple[int, float]:
        """How many outputs are alive, and how many inputs one of them reads in the mean."""
        inputs = self._inputs_of_arbors(masks, name)
        return int(self._alive_of_arbors(masks, name).sum()), float(inputs.float().mean())

    def exists(self, masks: Masks) -> bool:
        """Whether its block, if it is part of one, is kept."""
        return self.block is None or self.block.kept(masks)

    def saved(self, masks: Masks, name: str) -> dict[str, float]:
        """Its columns, with its own segments or the units that it reads; its rows, with what they feed; of the stack,
        its share of a mean block."""
        if not self.exists(masks):
            return {}
        rows = max(1, int(self.alive_rows(masks).sum()))
        saved: dict[str, float] = defaultdict(float)
        if self.reads is not None and self.reads.host:
            saved[self.reads.host] += self.reads.per_segment(masks) * self.per_weight * rows
        elif self.segment_size:
            saved[name] += self.segment_size * self.per_weight * rows
        kept = int(self._inputs_of_arbors(masks, name)[0])
        for link in self.feeds:
            saved[link.host] += link.per_segment(masks) * (kept * self.per_weight + self.per_row)
        if self.block is not None:
            saved |= self.block.share(self.cost(masks, name), masks)
        return dict(saved)

    def dying_rows(self) -> tuple[Link, ...]:
        return self.feeds

    def alive_rows(self, masks: Masks) -> Bool[Tensor, " rows"]:
        """Which outputs still reach something that is kept."""
        alive = torch.ones(self.rows, dtype=torch.bool)
        for link in self.feeds:
            alive &= link.alive(masks)
        return alive

    def _alive_of_arbors(self, masks: Masks, name: str) -> Tensor:
        """How many outputs of each arbor are alive, `[arbors]`."""
        arbors = 1 if self.reads is not None else masks[name].shape[0]
        return self.alive_rows(masks).unflatten(0, (arbors, -1)).sum(1)

    def _inputs_of_arbors(self, masks: Masks, name: str) -> Tensor:
        """How many inputs each arbor reads, `[arbors]`."""
        if self.reads is not None:
            return self.reads.alive(masks).sum(0, keepdim=True)
        return masks[name].sum(1) * self.segment_size
