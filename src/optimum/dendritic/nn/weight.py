"""Segments on a layer of one weight matrix, `y = W x + b`: the stock forward on the stock parameters."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers.pytorch_utils import Conv1D

from ..distributed.dtensor import local, summed, whole
from ..functional.importance import square_norm, square_sums
from ..functional.tiles import Piece, kept_inputs, over_tiles, piece, tiles, wide
from .base import DendriticLayer, moments
from .sprout import Sprout, empty_sprout

WeightLayer = nn.Linear | nn.Conv2d | Conv1D


class DendriticWeight(DendriticLayer):
    """What the injected layers of one weight share: a segment is a group of inputs, an arbor a group of outputs.

    Attributes:
        weight: The stock weight.
        bias: The stock bias; None without one.
        dendrite_awake: Whether the sprout is active, a bool; None without a sprout. While it is False, the sprout
            changes neither outputs nor gradients.
        sprout: The sprout of the layer; None without one.
        transposed: Whether the weight has its inputs first, as that of a Conv1D.
        channel_axis: The axis of the inputs and outputs in the tensors that the layer reads and makes.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    dendrite_awake: Tensor | None
    sprout: Sprout | None
    transposed = False
    channel_axis = -1

    def add_segments(self, arbors: int, segments: int, activity: bool, sprout: int) -> None:
        inputs, outputs = widths(self)
        assert outputs % arbors == 0 and (activity or not sprout)
        super().add_segments(arbors, segments, activity, sprout)
        device = self.weight.device
        if activity:
            self.dendrite_activity = torch.zeros(inputs, dtype=torch.float32, device=device)
            self.seen = torch.zeros(inputs + 1, dtype=torch.float32, device=device)
        self.register_buffer("dendrite_awake", torch.zeros((), dtype=torch.bool, device=device) if sprout else None)
        grown = empty_sprout(sprout, inputs, outputs, like=self.weight).train(self.training) if sprout else None
        self.register_module("sprout", grown)

    def forward(self, x: Tensor) -> Tensor:
        if self.dendrite_activity is not None and self.training:
            self._observe(x)
        y = super().forward(x)
        if self.sprout is None or self.dendrite_awake is None:
            return y
        return torch.where(self.dendrite_awake, y + self.sprout(x).to(y.dtype), y)  # no sum: y + 0 turns -0 into 0

    @torch.no_grad()
    def _observe(self, x: Tensor) -> None:
        """Add up the squares of each input."""
        seen = self.seen_here()
        seen[:-1] += square_sums(x.float(), self.channel_axis)
        seen[-1] += x.numel() // x.shape[self.channel_axis]

    def factors(self, x: Tensor) -> Float[Tensor, "samples in"]:
        """What the layer multiplies its weight with when it reads `x`: a row for each of its products."""
        return x.reshape(-1, x.shape[-1])

    def products(self, y: Tensor) -> Float[Tensor, "samples out"]:
        """The layer's output `y`, in the rows of `factors`."""
        y = y.movedim(self.channel_axis, -1)
        return y.reshape(-1, y.shape[-1])

    @property
    def tiles(self) -> Float[Tensor, "arbors rows segments inputs kernel"]:
        """View of the weight; see `functional.tiles.tiles`."""
        return self.as_tiles(self.weight)

    def as_tiles(self, like_weight: Tensor) -> Float[Tensor, "arbors rows segments inputs kernel"]:
        """View of a tensor of the weight's shape (a gradient, an optimizer's moment)."""
        arbors, segments = self.dendrite_mask.shape
        return tiles(like_weight, arbors, segments, self.transposed)

    @property
    def segment_size(self) -> int:
        return widths(self)[0] // self.dendrite_mask.shape[1]

    def segmented(self) -> dict[str, nn.Parameter]:
        return {"weight": self.weight}

    def gated(self, tensors: Mapping[str, Tensor]) -> list[Piece]:
        return [self._piece(tensors["weight"])]

    def pieces(self, tensors: Mapping[str, Tensor]) -> list[Piece]:
        return [self._piece(tensor) for tensor in tensors.values()]

    def _piece(self, like_weight: Tensor) -> Piece:
        arbors, segments = self.dendrite_mask.shape
        return piece(like_weight, arbors, segments, self.transposed)

    @torch.no_grad()
    def row_norms(self) -> Float[Tensor, " outputs"]:
        """`||W||^2` of each output."""
        outputs = widths(self)[1]
        part, total = piece(self.weight, outputs, 1, self.transposed), self.dendrite_score.new_zeros(outputs, 1).float()
        part.add_to(total, square_norm(part.tiles, part.tiles).float())
        return summed(total, like=self.weight).flatten()

    def kept(self) -> list[Tensor]:
        """Ascending input indices (int64) that each arbor reads, on the CPU; all of them for a layer that has no mask
        of its own."""
        if not self.dendrite_mask.numel():
            return [torch.arange(widths(self)[0])]
        return [kept_inputs(arbor, self.segment_size) for arbor in self.dendrite_mask.cpu()]

    @torch.no_grad()
    def update_sprout_(
        self,
        gone: Bool[Tensor, "arbors segments"],
        alive: Bool[Tensor, " outputs"],
        *,
        pays: bool,
        final: bool,
        optimizer: Optimizer | None,
    ) -> None:
        """An inactive sprout absorbs the segments `gone` of the outputs `alive`, and becomes active in the `final`
        update if it `pays`. An active one that no longer pays becomes inactive, and its gates become 0."""
        if self.sprout is None or self.dendrite_awake is None:
            return
        active = bool(self.dendrite_awake)
        if not active:
            self.absorb_(gone, alive.to(gone.device))
        self.dendrite_awake.fill_(pays and (active or final))
        local(self.sprout.gate).mul_(self.dendrite_awake)
        for parameter in () if active else self.sprout.parameters():
            for moment in moments(parameter, optimizer):
                moment.zero_()

    @torch.no_grad()
    def absorb_(self, gone: Bool[Tensor, "arbors segments"], alive: Bool[Tensor, " outputs"]) -> None:
        """Fold the weights of tiles that are being pruned into the sprout, as far as their outputs are alive.

        A sharded weight is gathered for it: the factors need all of what is lost at once.
        """
        assert self.sprout is not None and self.dendrite_activity is not None
        lost = torch.where(over_tiles(gone), wide(self.as_tiles(whole(self.weight))), 0).flatten(0, 1).flatten(1)
        self.sprout.absorb_(torch.where(alive[:, None], lost, 0).float(), self.dendrite_activity.float().sqrt())

    def active_sprout(self, rows: Tensor) -> Sprout | None:
        """The part of the sprout that adds to the outputs `rows`, on parameters of its own; None if it adds nothing."""
        if self.sprout is None or not self.dendrite_awake:
            return None
        part = self.sprout.rows(rows)
        return part if bool(part.gate.any()) else None


def widths(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a layer of one weight, by its weight."""
    assert isinstance(layer, WeightLayer)
    first, second = layer.weight.shape[:2]
    return (first, second) if isinstance(layer, Conv1D) else (second, first)
