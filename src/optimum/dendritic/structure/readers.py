"""Modules that multiply by a weight: where they have their channels, and the shapes of what they make."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..nn import is_weight_layer, widths

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
READERS = (nn.Linear, Conv1D, nn.RNNBase, nn.Bilinear, nn.MultiheadAttention, *CONVOLUTIONS)


def is_wide(module: nn.Module) -> bool:
    """Whether a module is a layer of one weight that has inputs and outputs."""
    return is_weight_layer(module) and min(widths(module)) > 0


def channel_axis(module: nn.Module) -> int:
    """Where a module that is not a norm has the channels of the tensor that it reads or makes."""
    return 1 if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.PReLU | nn.BatchNorm1d) else -1


def answer_shape(layer: nn.Module, x: Tensor, outputs: int) -> torch.Size:
    """The shape of what a layer of one weight makes of `x`, with so many outputs."""
    if not isinstance(layer, nn.Conv2d):
        return torch.Size((*x.shape[:-1], outputs))
    return torch.Size((*x.shape[:-3], outputs, *_convolved(layer, x.shape[-2:])))


def _convolved(layer: nn.Conv2d, size: Sequence[int]) -> list[int]:
    """Height and width of what a convolution makes of a picture of height and width `size`."""
    if layer.padding == "same":
        return list(size)
    padding = (0, 0) if isinstance(layer.padding, str) else layer.padding
    parts = zip(size, padding, layer.dilation, layer.kernel_size, layer.stride, strict=True)
    return [
        (length + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for length, pad, dilation, kernel, stride in parts
    ]
