"""A weight as tiles of dendritic segments: the one place that knows how a weight is cut.

A layer has `A` arbors (equal groups of outputs) and `S` segments (equal groups of inputs). Tile `(a, s)` holds the
weights from segment `s` to arbor `a`; a mask, a score and a gate have one entry for each tile, shape `[A, S]`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..distributed.dtensor import held, local


def rows_first(weight: Tensor, transposed: bool) -> Float[Tensor, "outputs inputs kernel"]:
    """View of a Linear (`[out, in]`), Conv (`[out, in, *kernel]`) or Conv1D (`[in, out]`, `transposed`) weight."""
    if transposed:
        return weight.t().unsqueeze(-1)
    return weight.view(*weight.shape[:2], weight.shape[2:].numel())  # view, never a copy: callers write through it


def tiles(
    weight: Tensor, arbors: int, segments: int, transposed: bool = False
) -> Float[Tensor, "arbors rows segments inputs kernel"]:
    """View of `weight` as tiles; writing to it writes to the weight. `arbors` divides out, `segments` divides in."""
    rows = rows_first(weight, transposed)
    outputs, inputs = (width // max(1, parts) for width, parts in zip(rows.shape[:2], (arbors, segments), strict=True))
    return rows.unflatten(1, (segments, inputs)).unflatten(0, (arbors, outputs))


@dataclass(frozen=True)
class Piece:
    """Tiles of a layer, or of the part of it that this process holds; a shard is cut finer, so that no tile crosses
    its edge.

    Attributes:
        tiles: A view, `[a, rows, s, inputs, kernel]`.
        arbors: For each of the `a` the arbor of the layer that it is part of; None where they are the layer's.
        segments: Likewise for each of the `s`; -1 for one that is part of none.
        inputs: Indices of the inputs along the tiles, where they are not all.
    """

    tiles: Float[Tensor, "a rows s inputs kernel"]
    arbors: Tensor | None = None
    segments: Tensor | None = None
    inputs: Tensor | None = None

    def add_to(self, total: Float[Tensor, "arbors segments"], sums: Float[Tensor, "a s"]) -> None:
        """Add the sum over each of these tiles to the layer's tile that it is part of."""
        arbors, segments = total.shape
        if self.arbors is not None:
            sums = sums.new_zeros(arbors, sums.shape[1]).index_add(0, self.arbors, sums)
        if self.segments is not None:
            index = self.segments.where(self.segments >= 0, segments)
            sums = sums.new_zeros(arbors, segments + 1).index_add(1, index, sums)[:, :segments]
        total.add_(sums)

    def blank_(self, chosen: Bool[Tensor, "arbors segments"]) -> None:
        """Set what is part of the layer's `chosen` tiles to zero."""
        self.tiles.masked_fill_(over_tiles(self._own(chosen)), 0)

    def take(self, chosen: Bool[Tensor, "arbors segments"]) -> Float[Tensor, "n rows inputs kernel"]:
        """A copy of what is part of the layer's `chosen` tiles."""
        return self.tiles.transpose(1, 2)[self._own(chosen)]

    def put_(self, chosen: Bool[Tensor, "arbors segments"], taken: Float[Tensor, "n rows inputs kernel"]) -> None:
        """Put what `take` gave back in its place."""
        self.tiles.transpose(1, 2)[self._own(chosen)] = taken

    def _own(self, chosen: Bool[Tensor, "arbors segments"]) -> Bool[Tensor, "a s"]:
        """Of these tiles, which are part of the layer's `chosen` ones."""
        chosen = chosen if self.arbors is None else chosen[self.arbors]
        if self.segments is None:
            return chosen
        return torch.cat([chosen, chosen.new_zeros(len(chosen), 1)], 1)[:, self.segments]


def piece(weight: Tensor, arbors: int, segments: int, transposed: bool = False) -> Piece:
    """The tiles of `weight`; of a shard of rows each row as an arbor, of one of inputs each input as a segment."""
    own, part = held(weight), local(weight)
    if own is None:
        return Piece(tiles(part, arbors, segments, transposed))
    if transposed:
        fine = tiles(part, arbors, len(own), transposed)
        return Piece(fine, segments=own // (weight.shape[0] // segments), inputs=own)
    return Piece(tiles(part, len(own), segments), arbors=own // (weight.shape[0] // arbors))


def unit_piece(weight: Tensor, units: Int[Tensor, " inputs"], transposed: bool = False) -> Piece:
    """The tiles of `weight` whose segments are the units of a group: those of input `i` are of segment `units[i]`."""
    own = held(weight)
    fine = piece(weight, 1, len(units), transposed)
    units = units.to(fine.tiles.device)
    if own is None:
        return Piece(fine.tiles, segments=units)
    return Piece(tiles=fine.tiles, arbors=fine.arbors, segments=units[own] if transposed else units, inputs=fine.inputs)


def wide(values: Tensor) -> Tensor:
    """In fp32 at least: squares and products of half-precision gradients would vanish."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def sum_tiles(values: Float[Tensor, "arbors rows segments inputs kernel"]) -> Float[Tensor, "arbors segments"]:
    """Sum inside each tile, in fp32 at least."""
    return values.sum((1, 3, 4), dtype=torch.promote_types(values.dtype, torch.float32))


def over_tiles(mask: Bool[Tensor, "arbors segments"]) -> Bool[Tensor, "arbors 1 segments 1 1"]:
    """A mask shaped so that it broadcasts over `tiles`."""
    return mask[:, None, :, None, None]


def kept_inputs(mask: Bool[Tensor, " segments"], segment_size: int) -> Tensor:
    """Ascending indices (int64) of the inputs in the kept segments of one arbor."""
    return mask.repeat_interleave(segment_size).nonzero().flatten()


def largest_divisor(number: int, at_most: int, multiple_of: int = 1) -> int:
    """Largest divisor of `number` that is at most `at_most` and a multiple of `multiple_of`, else `multiple_of`.

    >>> largest_divisor(768, 32), largest_divisor(32, 3), largest_divisor(9216, 32, multiple_of=144)
    (32, 2, 144)
    """
    fitting = [d for d in range(multiple_of, at_most + 1, multiple_of) if number % d == 0]
    return fitting[-1] if fitting else multiple_of
