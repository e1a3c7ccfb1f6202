"""What layers cost in measured time: between the sizes that were measured, on straight lines."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor

from ..layout.times import TimeGrid
from .costs import Cost, LayerCost, Link, Masks

SMALLEST_PRICE = 1e-3  # of what never gets faster, so that scores can be divided by it


@dataclass(frozen=True, kw_only=True)
class TimedLayer(Cost):
    """What a layer of one weight takes.

    Attributes:
        shape: Says how wide it is under the masks.
        grid: Its measured times.
    """

    shape: LayerCost
    grid: TimeGrid

    def cost(self, masks: Masks, name: str) -> int:
        return round(time_at(self.grid, *self.shape.size(masks, name))) if self.shape.exists(masks) else 0

    def saved(self, masks: Masks, name: str) -> dict[str, float]:
        """The mean price of one unit over all sizes along its axis, at the present size of the other axis: single
        steps of measured times are noise."""
        rows, inputs = self.shape.size(masks, name)
        per_row = _slope(self.grid.rows, [time_at(self.grid, size, inputs) for size in self.grid.rows])
        per_input = _slope(self.grid.inputs, [time_at(self.grid, rows, size) for size in self.grid.inputs])
        saved: dict[str, float] = {}
        if self.shape.reads is not None and self.shape.reads.host:
            saved[self.shape.reads.host] = self.shape.reads.per_segment(masks) * per_input
        elif self.shape.segment_size:
            saved[name] = self.shape.segment_size * per_input
        for link in self.shape.feeds:
            saved[link.host] = saved.get(link.host, 0.0) + link.per_segment(masks) * per_row
        return saved

    def dying_rows(self) -> tuple[Link, ...]:
        return self.shape.dying_rows()

    def alive_rows(self, masks: Masks) -> Bool[Tensor, " rows"]:
        return self.shape.alive_rows(masks)


@dataclass(frozen=True, kw_only=True)
class TimedRecurrent(Cost):
    """What an LSTM or GRU takes, by the number of its hidden units."""

    grid: TimeGrid

    def cost(self, masks: Masks, name: str) -> int:
        return round(time_at(self.grid, int(masks[name][0].sum()), 0))

    def saved(self, masks: Masks, name: str) -> dict[str, float]:
        return {name: _slope(self.grid.rows, [time_at(self.grid, size, 0) for size in self.grid.rows])}


def time_at(grid: TimeGrid, rows: float, inputs: float) -> float:
    """The time at a size, bilinear between the sizes that were measured, and that of the nearest one beyond them.

    >>> grid = TimeGrid(rows=(2, 4), inputs=(1, 3), times=(10, 20, 30, 40))
    >>> time_at(grid, 4, 3), time_at(grid, 3, 2), time_at(grid, 0, 0)
    (40.0, 25.0, 10.0)
    """
    width = len(grid.inputs)
    low, high, part = _between(grid.rows, rows)
    left, right, share = _between(grid.inputs, inputs)
    first, second = (
        (1 - share) * grid.times[line * width + left] + share * grid.times[line * width + right] for line in (low, high)
    )
    return (1 - part) * first + part * second


def _between(sizes: Sequence[int], size: float) -> tuple[int, int, float]:
    """The neighbours of a size, and how far it is from the first one to the second."""
    right = min(bisect_right(sizes, size), len(sizes) - 1)
    left = max(0, right - 1)
    if left == right:
        return left, right, 0.0
    return left, right, min(1.0, max(0.0, (size - sizes[left]) / (sizes[right] - sizes[left])))


def _slope(sizes: Sequence[int], times: Sequence[float]) -> float:
    """The mean time of one more.

    >>> _slope([2, 6], [10.0, 30.0])
    5.0
    """
    if len(sizes) < 2:
        return SMALLEST_PRICE
    return max(SMALLEST_PRICE, (times[-1] - times[0]) / (sizes[-1] - sizes[0]))
