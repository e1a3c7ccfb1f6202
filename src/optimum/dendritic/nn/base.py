"""`DendriticLayer`: what every injected layer has, whatever its parameters look like: a mask, a score and their steps.

A pruned tile is a tile of zeros; nothing is multiplied in the forward pass, so gradients stay dense and a pruned tile
can grow back. Buffers are persistent, hence saved, resumed and broadcast like weights.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..distributed.dtensor import summed
from ..functional.importance import IMPORTANCE, Importance, Measure, square_gradient
from ..functional.tiles import Piece

OWN_BUFFERS = ("dendrite_mask", "dendrite_score", "dendrite_activity", "dendrite_awake")


class DendriticLayer(nn.Module):
    """What the injected layers share. `dendrite_mask`, `dendrite_score`: `[arbors, segments]`, bool and float32."""

    dendrite_mask: Tensor
    dendrite_score: Tensor
    dendrite_activity: Tensor | None

    def add_segments(self, arbors: int, segments: int, activity: bool, sprout: int) -> None:
        """Register the buffers; everything is kept and nothing scored. `AssertionError` where the shapes forbid it."""
        device = next(self.parameters()).device
        self.register_buffer("dendrite_mask", torch.ones(arbors, segments, dtype=torch.bool, device=device))
        self.register_buffer("dendrite_score", torch.zeros(arbors, segments, dtype=torch.float32, device=device))
        self.register_buffer("dendrite_activity", None)

    def segmented(self) -> dict[str, nn.Parameter]:
        """The parameters that hold the tiles, by name."""
        raise NotImplementedError

    def gated(self, tensors: Mapping[str, Tensor]) -> list[Piece]:
        """All that the gates multiply; of sharded parameters, what this process holds of it.

        Args:
            tensors: the parameters of `segmented`, or others of their shapes (gradients).
        """
        raise NotImplementedError

    def blank_(self, tensors: Mapping[str, Tensor], chosen: Bool[Tensor, "arbors segments"]) -> None:
        """Set the `chosen` tiles of the parameters of `segmented`, or of others of their shapes, to zero, in place."""
        raise NotImplementedError

    def kept(self) -> list[Tensor]:
        """Ascending indices (int64) of what each arbor keeps when it is packed, on the CPU."""
        raise NotImplementedError

    def score_(self, importance: str, decay: float) -> None:
        """Take one reading of the score from the present weight and gradient; one that is not finite is dropped."""
        reading = self.read(importance)
        if reading is not None:
            self.note_(reading, importance, decay)

    @torch.no_grad()
    def read(self, importance: str) -> Float[Tensor, "arbors segments"] | None:
        """What this step says of each segment; None where there is nothing to read, such as a gradient."""
        rule = IMPORTANCE[importance]
        if rule.measure is None or (rule.running and not self._has_gradient()):
            return None
        return self.reading(rule, self._gradients())

    @torch.no_grad()
    def note_(self, reading: Float[Tensor, "arbors segments"], importance: str, decay: float) -> None:
        """Make a reading part of the score, as far as the score stays finite."""
        running = IMPORTANCE[importance].running
        score = self.dendrite_score.float().lerp(reading, 1 - decay) if running else reading
        self.dendrite_score.copy_(torch.where(score.isfinite(), score, self.dendrite_score))

    @torch.no_grad()
    def reading(self, rule: Importance, gradients: Mapping[str, Tensor]) -> Float[Tensor, "arbors segments"]:
        """What `rule` makes of the present parameters and these gradients of `segmented`."""
        assert rule.measure is not None
        return rule.score(self._sums(rule.measure, gradients)).float()

    @torch.no_grad()
    def growth(self) -> Float[Tensor, "arbors segments"]:
        """`||dL/dW||^2` of each tile: how much a pruned tile wants to come back (Evci et al. 2020)."""
        if not self._has_gradient():
            return torch.zeros_like(self.dendrite_score)
        norms = self._sums(square_gradient, self._gradients()).float()
        return torch.where(norms.isfinite(), norms, torch.zeros_like(norms))

    @torch.no_grad()
    def mask_(self) -> None:
        """Set the pruned tiles to zero, in place, and end the step."""
        self.blank_(self.segmented(), ~self.dendrite_mask)

    def _sums(self, measure: Measure, gradients: Mapping[str, Tensor]) -> Float[Tensor, "arbors segments"]:
        """`measure` summed over all that each gate multiplies, wherever it is held."""
        parameters, activity = self.segmented(), self.dendrite_activity
        single = torch.promote_types(next(iter(parameters.values())).dtype, torch.float32)
        total = torch.zeros_like(self.dendrite_mask, dtype=single)
        for part, gradient in zip(self.gated(parameters), self.gated(gradients), strict=True):
            seen = activity if activity is None or part.inputs is None else activity[part.inputs]
            part.add_to(total, measure(part.tiles, gradient.tiles, seen))
        return summed(total, like=next(iter(parameters.values())))

    def _has_gradient(self) -> bool:
        return any(parameter.grad is not None for parameter in self.segmented().values())

    def _gradients(self) -> dict[str, Tensor]:
        return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in self.segmented().items()}


def drop_own_buffers(layer: nn.Module) -> None:
    """Take what `add_segments` put there off a layer that is packed."""
    layer.__dict__.pop("seen", None)
    for name in OWN_BUFFERS:
        layer._buffers.pop(name, None)
        layer._non_persistent_buffers_set.discard(name)
