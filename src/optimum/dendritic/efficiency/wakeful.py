"""Models that compute more for some inputs than for others: how much they hold besides, and how often they use it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch import Tensor, nn

ATTRIBUTE = "dendritic_dormant"


class Wakeful(ABC):
    """What a model holds beside its own modules, and the count of the rows (samples, tokens) that needed it.

    Attributes:
        seen: The rows that were asked about since `reset`.
        woken: Those of them that needed it.
    """

    seen: int = 0
    woken: int = 0

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What it holds that the model does not, by name."""

    @abstractmethod
    def parameters(self) -> int:
        """The elements of its parameters that the model does not have."""

    @abstractmethod
    def modules(self) -> Iterator[nn.Module]:
        """Its modules, some of which may be the model's."""

    @property
    def rate(self) -> float:
        """The fraction of the rows that needed it; 0 where none was asked about."""
        return self.woken / self.seen if self.seen else 0.0

    def reset(self) -> None:
        """Count anew."""
        self.seen = self.woken = 0


def wakeful_of(model: nn.Module) -> Wakeful | None:
    """What a model holds beside its own modules; None where that is nothing."""
    return vars(model).get(ATTRIBUTE)
