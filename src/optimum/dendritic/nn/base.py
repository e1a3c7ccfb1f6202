"""`DendriticLayer`: what every injected layer has, whatever its parameters look like: a mask, a score and their steps.

A pruned tile is a tile of zeros; nothing is multiplied in the forward pass, so gradients stay dense and a pruned tile
can grow back. Buffers are persistent, hence saved, resumed and broadcast like weights.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.optim import Optimizer

from ..distributed.dtensor import summed
from ..functional.importance import IMPORTANCE, Importance, Measure, finite_or, running_mean, square_gradient
from ..functional.tiles import Piece
from ..unofficial import tensors_in

OWN_BUFFERS = ("dendrite_mask", "dendrite_score", "dendrite_activity", "dendrite_awake")
ACTIVITY_DECAY = 0.9


class Gates(ABC):
    """What is scored, pruned and regrown: the segments of a layer, or the units of a dependency group.

    Attributes:
        dendrite_mask: Which segments of each arbor are kept, `[arbors, segments]`, bool.
        dendrite_score: The importance of each segment so far, `[arbors, segments]`, float32.
        dendrite_activity: The running mean square of each input; None on a layer that does not observe its inputs.
        seen: The sum of squares of each input since the last optimizer step, and after them the number of summands,
            `[inputs + 1]`. It exists where `dendrite_activity` does. It is not a buffer, because each rank has its own:
            DistributedDataParallel would overwrite it with that of rank 0.
    """

    dendrite_mask: Tensor
    dendrite_score: Tensor
    dendrite_activity: Tensor | None
    seen: Tensor

    @abstractmethod
    def segmented(self) -> dict[str, nn.Parameter]:
        """The parameters that hold the tiles, by name."""

    @abstractmethod
    def gated(self, tensors: Mapping[str, Tensor]) -> list[Piece]:
        """All that the gates multiply. Of sharded parameters it is what this process holds.

        Args:
            tensors: the parameters of `segmented`, or tensors of their shapes, such as gradients.
        """

    @abstractmethod
    def pieces(self, tensors: Mapping[str, Tensor]) -> list[Piece]:
        """What of these tensors, some of the parameters of `segmented` or others of their shapes, is zero where it is
        pruned."""

    def blank_(self, tensors: Mapping[str, Tensor], chosen: Bool[Tensor, "arbors segments"]) -> None:
        """Set the `chosen` tiles of the parameters of `segmented`, or of others of their shapes, to zero, in place."""
        for part in self.pieces(tensors):
            part.blank_(chosen)

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
        """Make a reading part of the score. Entries that would not be finite stay as they were."""
        old, running = self.dendrite_score, IMPORTANCE[importance].running
        old.copy_(running_mean(old, reading, decay) if running else finite_or(reading, old))

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
        return finite_or(norms, torch.zeros_like(norms))

    @torch.no_grad()
    def mask_(self) -> None:
        """Set the pruned tiles to zero, in place, and end the step."""
        self.blank_(self.segmented(), ~self.dendrite_mask)
        if self.dendrite_activity is not None:
            self.seen.zero_()  # inputs of a step that was not scored

    def seen_here(self) -> Tensor:  # plain: torch.compile traces through it, and jaxtyping would not see a tensor
        """`seen` on the device of the layer: a tensor that is not a buffer does not move with the model."""
        assert self.dendrite_activity is not None
        if self.seen.device != self.dendrite_activity.device:
            self.seen = torch.zeros_like(self.seen, device=self.dendrite_activity.device)
        return self.seen

    @torch.no_grad()
    def note_activity_(self, seen: Float[Tensor, " inputs_and_number"]) -> None:
        """Fold one step's mean square of each input into the activity; one that is not finite is dropped.

        Args:
            seen: this layer's `seen`, or its mean over the ranks.
        """
        assert self.dendrite_activity is not None
        self.dendrite_activity.copy_(running_mean(self.dendrite_activity, seen[:-1] / seen[-1], ACTIVITY_DECAY))
        self.seen.zero_()

    @torch.no_grad()
    def row_norms(self) -> Float[Tensor, " outputs"]:
        """`||W||^2` of each output that can be pruned with the inputs that read it; empty where there are none."""
        return self.dendrite_score.new_zeros(0)

    @torch.no_grad()
    def regrow_(self, back: Bool[Tensor, "arbors segments"], optimizer: Optimizer | None) -> None:
        """Let the segments `back` start again: from zero weights, with an optimizer state of zeros and with the weakest
        live score of the layer. Such a segment goes first at the next update, unless its score has risen by then."""
        score, live = self.dendrite_score, self.dendrite_mask & ~back
        weakest = score.masked_fill(~live, torch.inf).min()
        score.copy_(score.where(~(back & weakest.isfinite()), weakest))
        for name, parameter in self.segmented().items():
            for moment in moments(parameter, optimizer):
                self.blank_({name: moment}, back)

    @torch.no_grad()  # noqa: B027
    def update_sprout_(
        self,
        gone: Bool[Tensor, "arbors segments"],
        alive: Bool[Tensor, " outputs"],
        *,
        pays: bool,
        final: bool,
        optimizer: Optimizer | None,
    ) -> None:
        """Bring the sprout, if the layer has one, up to date with the masks.

        Args:
            gone: the segments that this update prunes.
            alive: the outputs that are left.
            pays: whether the sprout costs less than what is pruned.
            final: whether this is the last update of the masks.
            optimizer: the optimizer whose state of the sprout is set to zero; None where there is none.
        """

    @torch.no_grad()
    def pruned_is_zero(self, mask: Bool[Tensor, "arbors segments"], tensors: Mapping[str, Tensor]) -> bool:
        """Whether the tiles that `mask` prunes are zero in `tensors`, which are the parameters of `segmented` or have
        their shapes. Of a shard, only the part that this process holds is read."""
        pieces = self.pieces({name: tensor.detach() for name, tensor in tensors.items()})
        return not any(bool(part.take(~mask).count_nonzero()) for part in pieces)

    def activities(self) -> list[Tensor | None]:
        """The running mean squares of the inputs of each of the pieces that `gated` gives, where they are observed."""
        return [self.dendrite_activity] * len(self.gated(self.segmented()))

    def _sums(self, measure: Measure, gradients: Mapping[str, Tensor]) -> Float[Tensor, "arbors segments"]:
        """`measure` summed over all that each gate multiplies, wherever it is held."""
        parameters = self.segmented()
        single = torch.promote_types(next(iter(parameters.values())).dtype, torch.float32)
        total = torch.zeros_like(self.dendrite_mask, dtype=single)
        parts = zip(self.gated(parameters), self.gated(gradients), self.activities(), strict=True)
        for part, gradient, activity in parts:
            if activity is None and self.dendrite_activity is not None:
                continue  # a head that reads the group: the inputs of targets alone are observed
            seen = activity if activity is None or part.inputs is None else activity[part.inputs]
            part.add_to(total, measure(part.tiles, gradient.tiles, seen))
        return summed(total, like=next(iter(parameters.values())))

    def _has_gradient(self) -> bool:
        return any(parameter.grad is not None for parameter in self.segmented().values())

    def _gradients(self) -> dict[str, Tensor]:
        return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in self.segmented().items()}


class DendriticLayer(nn.Module, Gates):
    """A layer with segments. Its buffers are persistent."""

    dendrite_mask: Tensor
    dendrite_score: Tensor
    dendrite_activity: Tensor | None
    seen: Tensor

    def add_segments(self, arbors: int, segments: int, activity: bool, sprout: int) -> None:
        """Register the buffers; everything is kept and nothing scored. `AssertionError` where the shapes forbid it."""
        device = next(self.parameters()).device
        self.register_buffer("dendrite_mask", torch.ones(arbors, segments, dtype=torch.bool, device=device))
        self.register_buffer("dendrite_score", torch.zeros(arbors, segments, dtype=torch.float32, device=device))
        self.register_buffer("dendrite_activity", None)

    @abstractmethod
    def kept(self) -> list[Tensor]:
        """Ascending indices (int64) of what each arbor keeps when it is packed, on the CPU."""


def moments(parameter: nn.Parameter, optimizer: Optimizer | None) -> list[Tensor]:
    """What an optimizer remembers of a parameter entry by entry, such as Adam's moments."""
    state = {} if optimizer is None else optimizer.state.get(parameter, {})
    return [value for value in state.values() if isinstance(value, Tensor) and value.shape == parameter.shape]


def drop_own_buffers(layer: nn.Module) -> None:
    """Remove from a layer that is packed what `add_segments` added to it."""
    layer.__dict__.pop("seen", None)
    for name in OWN_BUFFERS:
        if name in tensors_in(layer)[1]:
            delattr(layer, name)
