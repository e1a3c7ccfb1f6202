"""A weight as tiles of dendritic segments: the one place that knows how a weight is cut.

A layer has `A` arbors (equal groups of outputs) and `S` segments (equal groups of inputs). Tile `(a, s)` holds the
weights from segment `s` to arbor `a`; a mask, a score and a gate have one entry for each tile, shape `[A, S]`.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def rows_first(weight: Tensor, transposed: bool) -> Float[Tensor, "outputs inputs kernel"]:
    """View of a Linear (`[out, in]`), Conv (`[out, in, *kernel]`) or Conv1D (`[in, out]`, `transposed`) weight."""
    if transposed:
        return weight.t().unsqueeze(-1)
    return weight.view(*weight.shape[:2], -1)  # view, never a copy: callers write through it


def tiles(
    weight: Tensor, arbors: int, segments: int, transposed: bool = False
) -> Float[Tensor, "arbors rows segments inputs kernel"]:
    """View of `weight` as tiles; writing to it writes to the weight. `arbors` divides out, `segments` divides in."""
    rows = rows_first(weight, transposed)
    return rows.unflatten(1, (segments, -1)).unflatten(0, (arbors, -1))


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
