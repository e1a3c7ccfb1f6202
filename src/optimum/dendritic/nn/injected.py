"""The injected layers of one weight, and the register of all: stock class -> class with dendritic segments."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..unofficial import padded
from .base import DendriticLayer
from .recurrent import DendriticGRU, DendriticLSTM, RecurrentLayer, is_recurrent_layer
from .sprout import sprout_parameters
from .surgery import shallow_copy
from .weight import DendriticWeight, WeightLayer, widths

PrunableLayer = WeightLayer | RecurrentLayer


class DendriticLinear(DendriticWeight, nn.Linear):
    pass


class DendriticConv2d(DendriticWeight, nn.Conv2d):
    channel_axis = 1

    def factors(self, x: Tensor) -> Float[Tensor, "samples in"]:
        """The patches that the kernel covers, a row for each position."""
        patches = F.unfold(padded(self, x), self.kernel_size, self.dilation, stride=self.stride)
        return patches.transpose(1, 2).flatten(0, 1)


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
    return next((stock for stock, injected in INJECTED.items() if isinstance(layer, injected)), type(layer))


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


def can_sprout(layer: WeightLayer, rank: int) -> bool:
    """Whether a sprout of this rank fits: not on a convolution, and not where it would cost more than the layer."""
    return not isinstance(layer, nn.Conv2d) and sprout_parameters(rank, *widths(layer)) < layer.weight.numel()


def inject_layer(
    layer: PrunableLayer, arbors: int, segments: int, activity: bool = False, sprout: int = 0
) -> DendriticLayer:
    """A dendritic layer on the *same* parameters, hooks and flags as `layer`, which is left as it was.

    `arbors` divides the outputs and `segments` divides the inputs; of a recurrent layer both are given by its shape. A
    `sprout` of a rank above 0 needs `activity`, and is inactive at first. Other values are an `AssertionError`, because
    callers choose them so.
    """
    injected = shallow_copy(layer, INJECTED[type(layer)])
    assert isinstance(injected, DendriticLayer)
    injected.add_segments(arbors, segments, activity, sprout)
    return injected
