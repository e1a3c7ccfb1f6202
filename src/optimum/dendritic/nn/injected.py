"""Stock layers with dendritic segments: the stock forward on the stock parameters, plus buffers for mask and score.

A pruned tile is a tile of zeros; nothing is multiplied in the forward pass, so gradients stay dense and a pruned tile
can grow back. Buffers are persistent, hence saved, resumed and broadcast like weights.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..importance import IMPORTANCE
from ..segments import kept_inputs, over_tiles, sum_tiles, tiles, wide
from ..surgery import shallow_copy

ACTIVITY_DECAY = 0.9
WeightLayer = nn.Linear | nn.Conv2d | Conv1D


class DendriticLayer(nn.Module):
    """What the injected layers share. `dendrite_mask`, `dendrite_score`: `[arbors, segments]`, bool and float32."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    dendrite_mask: Tensor
    dendrite_score: Tensor
    dendrite_activity: Tensor | None
    transposed = False

    def _add_segments(self, arbors: int, segments: int, activity: bool) -> None:
        device = self.weight.device
        self.register_buffer("dendrite_mask", torch.ones(arbors, segments, dtype=torch.bool, device=device))
        self.register_buffer("dendrite_score", torch.zeros(arbors, segments, dtype=torch.float32, device=device))
        inputs = self.tiles.shape[2] * self.tiles.shape[3]
        activities = torch.zeros(inputs, dtype=torch.float32, device=device) if activity else None
        self.register_buffer("dendrite_activity", activities)

    def forward(self, x: Tensor) -> Tensor:
        if self.dendrite_activity is not None and self.training:
            self._observe(x)
        return super().forward(x)

    @torch.no_grad()
    def _observe(self, x: Tensor) -> None:
        """Fold the mean square of each input (the channel of a convolution, else the last axis) into the activity."""
        assert self.dendrite_activity is not None
        channels = 1 if isinstance(self, nn.Conv2d) else x.dim() - 1
        reading = x.float().square().mean([axis for axis in range(x.dim()) if axis != channels])
        activity = self.dendrite_activity.float().lerp(reading, 1 - ACTIVITY_DECAY)
        self.dendrite_activity.copy_(torch.where(activity.isfinite(), activity, self.dendrite_activity))

    @property
    def tiles(self) -> Float[Tensor, "arbors rows segments inputs kernel"]:
        """View of the weight; see `segments.tiles`."""
        return self.as_tiles(self.weight)

    def as_tiles(self, like_weight: Tensor) -> Float[Tensor, "arbors rows segments inputs kernel"]:
        """View of a tensor of the weight's shape (a gradient, an optimizer's moment)."""
        arbors, segments = self.dendrite_mask.shape
        return tiles(like_weight, arbors, segments, self.transposed)

    @property
    def segment_size(self) -> int:
        return self.tiles.shape[3]

    def kept_inputs(self) -> list[Tensor]:
        """Ascending input indices (int64) that each arbor reads, on the CPU."""
        return [kept_inputs(arbor, self.segment_size) for arbor in self.dendrite_mask.cpu()]

    @torch.no_grad()
    def score_(self, importance: str, decay: float) -> None:
        """Take one reading of the score from the present weight and gradient; one that is not finite is dropped."""
        rule = IMPORTANCE[importance]
        if rule.measure is None or (rule.running and self.weight.grad is None):
            return
        gradient = self.tiles if self.weight.grad is None else self.as_tiles(self.weight.grad)
        reading = rule.measure(self.tiles, gradient, self.dendrite_activity).float()
        score = self.dendrite_score.float().lerp(reading, 1 - decay) if rule.running else reading
        self.dendrite_score.copy_(torch.where(score.isfinite(), score, self.dendrite_score))

    @torch.no_grad()
    def growth(self) -> Float[Tensor, "arbors segments"]:
        """`||dL/dW||^2` of each tile: how much a pruned tile wants to come back (Evci et al. 2020)."""
        if self.weight.grad is None:
            return torch.zeros_like(self.dendrite_score)
        norms = sum_tiles(wide(self.as_tiles(self.weight.grad)).square()).float()
        return torch.where(norms.isfinite(), norms, torch.zeros_like(norms))

    @torch.no_grad()
    def mask_(self) -> None:
        """Set the pruned tiles to zero, in place."""
        self.tiles.masked_fill_(over_tiles(~self.dendrite_mask), 0)


class DendriticLinear(DendriticLayer, nn.Linear):
    pass


class DendriticConv2d(DendriticLayer, nn.Conv2d):
    pass


class DendriticConv1D(DendriticLayer, Conv1D):
    transposed = True


INJECTED: dict[type[nn.Module], type[DendriticLayer]] = {
    nn.Linear: DendriticLinear,
    nn.Conv2d: DendriticConv2d,
    Conv1D: DendriticConv1D,
}


def stock_type(layer: nn.Module) -> type[nn.Module]:
    """The stock class of an injected or stock layer."""
    return next((stock for stock, injected in INJECTED.items() if type(layer) is injected), type(layer))


def is_weight_layer(module: nn.Module) -> bool:
    """Whether a module can be pruned: exactly a Linear, a Conv2d of one group or a Conv1D, stock or injected."""
    return stock_type(module) in INJECTED and not (isinstance(module, nn.Conv2d) and module.groups > 1)


def weight_layer(model: nn.Module, name: str) -> WeightLayer:
    """The prunable layer at `name`."""
    layer = model.get_submodule(name)
    assert isinstance(layer, WeightLayer)
    return layer


def widths(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a prunable layer, by its weight."""
    assert isinstance(layer, WeightLayer)
    first, second = layer.weight.shape[:2]
    return (first, second) if isinstance(layer, Conv1D) else (second, first)


def inject_layer(layer: WeightLayer, arbors: int, segments: int, activity: bool = False) -> DendriticLayer:
    """A dendritic layer on the *same* parameters, hooks and flags as `layer`, which is left as it was.

    `arbors` divides the outputs and `segments` the inputs (`AssertionError` otherwise: callers choose divisors).
    """
    injected = shallow_copy(layer, INJECTED[type(layer)])
    assert isinstance(injected, DendriticLayer)
    inputs, outputs = widths(layer)
    assert outputs % arbors == 0 and inputs % segments == 0
    injected._add_segments(arbors, segments, activity)
    return injected
