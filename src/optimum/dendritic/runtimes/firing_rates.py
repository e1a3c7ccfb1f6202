"""The weights of a spiking network, scaled so that the values of its ReLUs become rates of spikes."""

import copy
from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn

QUANTILE = 0.999  # of the values of a ReLU: what is taken for its largest


def scaled(chain: nn.Sequential, samples: Tensor, rate: float) -> nn.Sequential:
    """A copy that sums where the chain averages, and in which the largest value of every ReLU is `rate`.

    A value of the chain is that of the copy times a scale: a layer with the weight `W`, the bias `b` and inputs and
    outputs of scales `s` and `t` has the weight `W s / t` and the bias `b / t` there.
    """
    scale, layers = torch.tensor(1.0), list(chain.named_children())
    scaled, value, largest = nn.Sequential(), samples, {}
    for name, layer in layers:
        value = layer(value)
        if isinstance(layer, nn.ReLU):
            largest[name] = _quantile(value)
    for index, (name, layer) in enumerate(layers):
        if isinstance(layer, nn.AvgPool2d):
            scale = scale / _pixels(layer)
            scaled.add_module(name, nn.LPPool2d(1, layer.kernel_size, layer.stride))
            continue
        own = copy.deepcopy(layer)
        if isinstance(own, nn.Conv2d | nn.Linear):
            wanted = _wanted(layers[index + 1 :], largest, rate, scale)
            assert own.bias is not None
            own.weight.mul_(scale / wanted)
            own.bias.div_(wanted)
            scale = wanted
        elif isinstance(own, nn.ReLU):
            scale = largest[name] / rate
        scaled.add_module(name, own)
    return scaled


def _wanted(behind: list[tuple[str, nn.Module]], largest: Mapping[str, Tensor], rate: float, scale: Tensor) -> Tensor:
    """The scale of a layer's outputs: that of the ReLU behind it, times the pixels that are summed between, or 1 at the
    end; `scale`, that of its inputs, where another layer with weights comes first."""
    pixels = 1
    for name, layer in behind:
        if isinstance(layer, nn.ReLU):
            return pixels * largest[name] / rate
        if isinstance(layer, nn.Conv2d | nn.Linear):
            return scale
        pixels *= _pixels(layer) if isinstance(layer, nn.AvgPool2d) else 1
    return torch.tensor(float(pixels))


def _quantile(value: Tensor) -> Tensor:
    """What is taken for the largest of the values that are not negative; 1 where all are zero."""
    flat = value.flatten()
    found = flat.kthvalue(max(1, int(QUANTILE * len(flat)))).values
    return next((each for each in (found, flat.max()) if each > 0), torch.ones_like(found))


def _pixels(layer: nn.AvgPool2d) -> int:
    size = layer.kernel_size
    return prod(size) if isinstance(size, tuple) else size**2
