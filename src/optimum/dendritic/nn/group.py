"""The units of a dependency group: one gate for all that reads a unit, in whatever layers."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..functional.tiles import Piece, unit_piece
from .base import Gates
from .injected import stock_type
from .weight import DendriticWeight, WeightLayer


class DendriticGroup(Gates):
    """The gates of a group that is cut. `dendrite_mask` `[1, units]` and the score are buffers of its first consumer.

    A gate multiplies the inputs of a unit in every consumer, so its derivative is the sum over the consumers of
    `<W, dL/dW>` (the chain rule), before it is squared.
    """

    def __init__(self, host: DendriticWeight, consumers: Mapping[str, tuple[WeightLayer, Int[Tensor, "..."]]]):
        """
        Args:
            host: the consumer that holds the buffers.
            consumers: by name the layers that read the group, the host among them, and the unit of each of their
                inputs, -1 where it has none.
        """
        self.host, self.consumers = host, dict(consumers)

    @property
    def dendrite_mask(self) -> Tensor:  # type: ignore[override]
        return self.host.dendrite_mask

    @property
    def dendrite_score(self) -> Tensor:  # type: ignore[override]
        return self.host.dendrite_score

    @property
    def dendrite_activity(self) -> Tensor | None:  # type: ignore[override]
        return self.host.dendrite_activity

    @property
    def seen(self) -> Tensor:  # type: ignore[override]
        return self.host.seen

    def seen_here(self) -> Tensor:
        return self.host.seen_here()

    def note_activity_(self, seen: Float[Tensor, " inputs_and_number"]) -> None:
        self.host.note_activity_(seen)

    def segmented(self) -> dict[str, nn.Parameter]:
        return {f"{name}.weight": layer.get_parameter("weight") for name, (layer, _) in self.consumers.items()}

    def gated(self, tensors: Mapping[str, Tensor]) -> list[Piece]:
        return [
            unit_piece(tensors[f"{name}.weight"], units, stock_type(layer) is Conv1D)
            for name, (layer, units) in self.consumers.items()
            if f"{name}.weight" in tensors
        ]

    def pieces(self, tensors: Mapping[str, Tensor]) -> list[Piece]:
        return self.gated(tensors)

    def activities(self) -> list[Tensor | None]:
        layers = [layer for layer, _ in self.consumers.values()]
        return [layer.dendrite_activity if isinstance(layer, DendriticWeight) else None for layer in layers]

    @torch.no_grad()
    def alive(self) -> Bool[Tensor, " units"]:
        """Which units are left, on the CPU."""
        return self.dendrite_mask[0].cpu()
