"""What is measured on the validation data, and how it is written."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A score of a model that is the mean of scores of examples.

    Attributes:
        name: The heading of its column.
        unit: The unit of a difference.
        scale: The factor from what runs record to what cards show.
        digits: The number of digits after the point, in cards.
        rises: Whether more is better.
    """

    name: str
    unit: str
    scale: float
    digits: int
    rises: bool

    def loss(self, dense: float, other: float) -> float:
        """By how much `other` is worse than `dense`."""
        return dense - other if self.rises else other - dense

    def write(self, value: float, sign: bool = False) -> str:
        """
        >>> ACCURACY.write(98.7651), BITS.write(0.0102, sign=True)
        ('98.77', '+0.010')
        """
        return f"{value:{'+' if sign else ''}.{self.digits}f}"


ACCURACY = Metric(name="accuracy %", unit="points", scale=100, digits=2, rises=True)
BITS = Metric(name="bits per character", unit="bits", scale=1, digits=3, rises=False)
