"""The injected layers of one weight, and the register of all: stock class -> class with dendritic segments."""

import functools

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..functional.low_rank import sprout_parameters
from ..unofficial import padded
from .base import DendriticLayer
from .recurrent import DendriticGRU, DendriticLSTM, RecurrentLayer, is_recurrent_layer
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
    """The stock class whose operation a layer computes: a stock layer, an injected one, or one of a class derived from
    a stock class that computes the same. Its own class if there is none."""
    stock = next((stock for stock in INJECTED if isinstance(layer, stock)), type(layer))
    if type(layer) is stock or isinstance(layer, DendriticLayer) or _computes_as(layer, stock):
        return stock
    return type(layer)


def own_type(layer: nn.Module) -> type[nn.Module]:
    """The class of a layer before it was injected: a stock class, or one derived from it."""
    if not isinstance(layer, DendriticLayer):
        return type(layer)
    stock = stock_type(layer)
    return next(k for k in type(layer).__mro__ if issubclass(k, stock) and not issubclass(k, DendriticLayer))


@functools.cache
def injected_type(kind: type[nn.Module]) -> type[DendriticLayer]:
    """The class with segments of a stock class, or of one derived from it, whose forward pass stays its own."""
    if kind in INJECTED:
        return INJECTED[kind]
    stock = next(stock for stock in INJECTED if issubclass(kind, stock))
    return type(f"Dendritic{kind.__name__}", (INJECTED[stock], kind), {})


@torch.no_grad()
def _computes_as(layer: nn.Module, stock: type[nn.Module]) -> bool:
    """Whether a layer of a derived class has nothing but the parameters of `stock` and computes the same with them, in
    training and in evaluation: tried on a small twin with random weights."""
    kind, own = type(layer), {name for name, _ in layer.named_parameters(recurse=False)}
    if isinstance(layer, nn.RNNBase) or not own <= {"weight", "bias"} or len(list(layer.modules())) > 1:
        return False
    if kind.forward is stock.forward:
        return True
    if next(layer.buffers(), None) is not None:
        return False
    with torch.device("cpu"):
        small, x = _twin(layer)
        for training in (True, False):
            small.training = training
            try:
                found, expected = kind.forward(small, x), stock.forward(small, x)
            except Exception:  # whatever it needs, the stock operation does not
                return False
            if not isinstance(found, Tensor) or not torch.equal(found, expected):
                return False
    return True


def _twin(layer: nn.Module) -> tuple[nn.Module, Tensor]:
    """A layer of the same class and settings with two outputs and three inputs, and samples for it."""
    assert isinstance(layer, WeightLayer)
    small, generator, kernel = shallow_copy(layer), torch.Generator().manual_seed(0), layer.weight.shape[2:]
    shape = (3, 2) if isinstance(layer, Conv1D) else (2, 3, *kernel)
    small.register_parameter("weight", nn.Parameter(torch.randn(shape, generator=generator)))
    if layer.bias is not None:
        small.register_parameter("bias", nn.Parameter(torch.randn(2, generator=generator)))
    sizes = {"in_features": 3, "in_channels": 3, "nx": 3, "out_features": 2, "out_channels": 2, "nf": 2}
    vars(small).update({name: size for name, size in sizes.items() if name in vars(small)})
    dilation = layer.dilation if isinstance(layer, nn.Conv2d) else ()
    spread = [distance * (length - 1) + 6 for distance, length in zip(dilation, kernel, strict=True)]
    return small, torch.randn(2, 3, *spread, generator=generator)


def is_weight_layer(module: nn.Module) -> bool:
    """Whether a module computes as a Linear, a Conv2d of one group or a Conv1D, stock or injected."""
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return False
    return stock_type(module) in (nn.Linear, nn.Conv2d, Conv1D)


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
    injected = shallow_copy(layer, injected_type(type(layer)))
    assert isinstance(injected, DendriticLayer)
    injected.add_segments(arbors, segments, activity, sprout)
    return injected
