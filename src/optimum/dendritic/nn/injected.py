"""Stock layers with dendritic segments: the stock forward on the stock parameters, plus buffers for mask and score.

Here are the layers of one weight matrix, `y = W x + b`, and the register of all injected layers; `recurrent` has those
with hidden units.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..importance import Tiles
from ..segments import kept_inputs, over_tiles, tiles
from ..surgery import shallow_copy
from .recurrent import DendriticGRU, DendriticLSTM, RecurrentLayer, is_recurrent_layer
from .segmented import DendriticLayer

ACTIVITY_DECAY = 0.9
WeightLayer = nn.Linear | nn.Conv2d | Conv1D
PrunableLayer = WeightLayer | RecurrentLayer


class DendriticWeight(DendriticLayer):
    """What the injected layers of one weight share: a segment is a group of inputs, an arbor a group of outputs."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    transposed = False

    def add_segments(self, arbors: int, segments: int, activity: bool) -> None:
        inputs, outputs = widths(self)
        assert outputs % arbors == 0 and inputs % segments == 0
        super().add_segments(arbors, segments, activity)
        if activity:
            self.dendrite_activity = torch.zeros(inputs, dtype=torch.float32, device=self.weight.device)

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

    def segmented(self) -> dict[str, nn.Parameter]:
        return {"weight": self.weight}

    def gated(self, tensors: Mapping[str, Tensor]) -> list[Tiles]:
        return [self.as_tiles(tensors["weight"])]

    def blank_(self, tensors: Mapping[str, Tensor], chosen: Bool[Tensor, "arbors segments"]) -> None:
        for tensor in tensors.values():
            self.as_tiles(tensor).masked_fill_(over_tiles(chosen), 0)

    def kept(self) -> list[Tensor]:
        """Ascending input indices (int64) that each arbor reads, on the CPU."""
        return [kept_inputs(arbor, self.segment_size) for arbor in self.dendrite_mask.cpu()]


class DendriticLinear(DendriticWeight, nn.Linear):
    pass


class DendriticConv2d(DendriticWeight, nn.Conv2d):
    pass


class DendriticConv1D(DendriticWeight, Conv1D):
    transposed = True


INJECTED: dict[type[nn.Module], type[DendriticLayer]] = {
    nn.Linear: DendriticLinear,
    nn.Conv2d: DendriticConv2d,
    Conv1D: DendriticConv1D,
    nn.LSTM: DendriticLSTM,
    nn.GRU: DendriticGRU,
}


def stock_type(layer: nn.Module) -> type[nn.Module]:
    """The stock class of an injected or stock layer."""
    return next((stock for stock, injected in INJECTED.items() if type(layer) is injected), type(layer))


def is_weight_layer(module: nn.Module) -> bool:
    """Whether a module is exactly a Linear, a Conv2d of one group or a Conv1D, stock or injected."""
    return stock_type(module) in (nn.Linear, nn.Conv2d, Conv1D) and not (
        isinstance(module, nn.Conv2d) and module.groups > 1
    )


def is_prunable(module: nn.Module) -> bool:
    """Whether a module can be pruned: a weight layer or a recurrent layer."""
    return is_weight_layer(module) or is_recurrent_layer(module)


def weight_layer(model: nn.Module, name: str) -> WeightLayer:
    """The layer of one weight at `name`."""
    layer = model.get_submodule(name)
    assert isinstance(layer, WeightLayer)
    return layer


def prunable_layer(model: nn.Module, name: str) -> PrunableLayer:
    """The prunable layer at `name`."""
    layer = model.get_submodule(name)
    assert isinstance(layer, PrunableLayer)
    return layer


def widths(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a layer of one weight, by its weight."""
    assert isinstance(layer, WeightLayer)
    first, second = layer.weight.shape[:2]
    return (first, second) if isinstance(layer, Conv1D) else (second, first)


def inject_layer(layer: PrunableLayer, arbors: int, segments: int, activity: bool = False) -> DendriticLayer:
    """A dendritic layer on the *same* parameters, hooks and flags as `layer`, which is left as it was.

    `arbors` divides the outputs and `segments` the inputs, or they are those of a recurrent layer (`AssertionError`
    otherwise: callers choose them so).
    """
    injected = shallow_copy(layer, INJECTED[type(layer)])
    assert isinstance(injected, DendriticLayer)
    injected.add_segments(arbors, segments, activity)
    return injected
