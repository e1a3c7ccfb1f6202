"""What a layout records of measured times, where the target of a compression is a time."""

import dataclasses
from dataclasses import dataclass

from .strict_json import bad

WHOLE = 10**9  # all times are parts of this, which is the time of the dense model


@dataclass(frozen=True, kw_only=True)
class TimeGrid:
    """The time of a layer at several sizes; it does not fall where a size grows.

    Attributes:
        rows: Ascending numbers of outputs, or of hidden units of a recurrent layer.
        inputs: Ascending numbers of inputs that are read.
        times: The time at each number of outputs with each number of inputs, the inputs running faster.
    """

    rows: tuple[int, ...]
    inputs: tuple[int, ...]
    times: tuple[int, ...]

    def __post_init__(self) -> None:
        width = len(self.inputs)
        lines = [self.times[i : i + width] for i in range(0, len(self.times), width or 1)]
        ascend = all(list(sizes) == sorted({*sizes}) and sizes for sizes in (self.rows, self.inputs))
        if not ascend or len(self.times) != len(self.rows) * width:
            raise bad("times.grid", dataclasses.asdict(self), "must have a time for each size, and sizes that ascend")
        if any(list(line) != sorted(line) for line in [*lines, *zip(*lines, strict=True)]):
            raise bad("times.grid", dataclasses.asdict(self), "must have times that do not fall where a size grows")


@dataclass(frozen=True, kw_only=True)
class Times:
    """What the parts of a dense model take, in parts of `WHOLE`, and what measurements of the pruned one have shown.

    Attributes:
        hundredths: The hundredths of a microsecond that one forward pass of the dense model takes.
        grids: The times of layers.
        layers: For each layer that multiplies, the index of its grid.
        units: What one unit of a group takes outside of layers, such as in norms and attention, by the group's host.
        rest: What is left of the dense model's time.
        counted: The part of the time that the grids said was gone when it was measured last.
        measured: The part of the time that was really gone then.
        level: The part of the target that had been reached then.
    """

    hundredths: int
    grids: tuple[TimeGrid, ...]
    layers: dict[str, int]
    units: dict[str, int]
    rest: int
    counted: int = WHOLE
    measured: int = WHOLE
    level: int = 0

    @property
    def dense_ms(self) -> float:
        """The milliseconds that one forward pass of the dense model takes."""
        return self.hundredths / 1e5

    def to_count(self, real: float) -> float:
        """The part of the time that has to go as the grids count it, so that the part `real` of it is gone.

        What was measured last lies on two straight lines between nothing gone and all of it gone, which are the same in
        both: however far from the truth the grids were, they are never asked for more than there is.

        >>> times = Times(hundredths=1, grids=(), layers={}, units={}, rest=0, counted=WHOLE // 4, measured=WHOLE // 20)
        >>> [round(times.to_count(part), 6) for part in (0.0, 0.05, 0.525, 1.0)]
        [0.0, 0.25, 0.625, 1.0]
        """
        return _on_lines(real, self.measured / WHOLE, self.counted / WHOLE)

    def really(self, counted: float) -> float:
        """The part of the time that is gone where the grids count this one; the inverse of `to_count`."""
        return _on_lines(counted, self.counted / WHOLE, self.measured / WHOLE)

    def __post_init__(self) -> None:
        if any(index >= len(self.grids) for index in self.layers.values()):
            raise bad("times.layers", self.layers, f"must be indices of {len(self.grids)} grids")
        if not all(1 <= part <= WHOLE for part in (self.counted, self.measured)):
            raise bad("times.measured", (self.counted, self.measured), f"must be parts of {WHOLE}")


def _on_lines(x: float, middle: float, value: float) -> float:
    """The value at x on the lines from (0, 0) by (middle, value) to (1, 1)."""
    if x <= middle or middle == 1:
        return x * value / middle
    return value + (x - middle) * (1 - value) / (1 - middle)
