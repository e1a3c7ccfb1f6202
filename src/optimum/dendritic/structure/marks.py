"""Marks of NaN in tensors: how they are set, handed on and read."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..unofficial import tensors_in


@dataclass(frozen=True)
class Axis:
    """An axis of a parameter that stands alone.

    Attributes:
        name: The full name of the parameter.
        axis: Which of its axes.
        length: Its entries.
    """

    name: str
    axis: int
    length: int

    @property
    def key(self) -> str:
        """What it is called among the producers."""
        return f"{self.name}@{self.axis}"


class Tangled(Exception):
    """The marks cannot be read: the batch axis was mixed, or the model makes NaN by itself."""


def by_channel(nan: Tensor, samples: int, channel_axis: int) -> Bool[Tensor, "samples channels"]:
    """Any NaN per sample and channel, on the CPU. The batch axis may have grown (windows) but not been reordered."""
    if nan.shape[0] % samples or nan.dim() < 2:
        raise Tangled(f"an input of shape {tuple(nan.shape)} does not begin with the batch")
    nan = nan.movedim(channel_axis, -1)
    return nan.reshape(samples, -1, nan.shape[-1]).any(1).cpu()


def any_nan(nans: Sequence[Tensor], samples: int) -> Bool[Tensor, "samples 1"]:
    """Any NaN per sample, in one column; in all samples where a tensor does not begin with the batch."""
    found = torch.zeros(samples, 1, dtype=torch.bool)
    for nan in nans:
        begins = nan.dim() > 0 and nan.shape[0] and nan.shape[0] % samples == 0
        found |= nan.reshape(samples, -1).any(1, keepdim=True).cpu() if begins else bool(nan.any())
    return found


def marked(output: Tensor, pattern: Bool[Tensor, "samples channels"], axis: int) -> Tensor:
    if output.shape[0] % len(pattern):
        raise Tangled(f"an output of shape {tuple(output.shape)} does not begin with the batch")
    axis %= output.dim()
    pattern = pattern.to(output.device).repeat_interleave(output.shape[0] // len(pattern), 0)
    shape = [len(pattern)] + [pattern.shape[1] if a == axis else 1 for a in range(1, output.dim())]
    return output.masked_fill(pattern.view(shape), math.nan)


def spread_over(output: Tensor, samples: int) -> Tensor:
    """What begins with a batch of one, once for every sample."""
    return output.expand(samples, *output.shape[1:]) if output.dim() > 1 and len(output) == 1 else output


@contextmanager
def marked_parameters(model: nn.Module, patterns: Mapping[Axis, Bool[Tensor, "..."]]) -> Iterator[None]:
    """While it lasts, parameters that stand alone are NaN as `patterns` say, each with the batch of its pattern."""
    before: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for axis, pattern in patterns.items():
            owner, _, name = axis.name.rpartition(".")
            registry = tensors_in(model.get_submodule(owner))[0]
            value = registry[name].detach()
            before.append((registry, name, registry[name]))
            marks = pattern if len(pattern) > 1 else pattern[0]
            shape = [axis.length if a == axis.axis else 1 for a in range(value.dim())]
            if marks.dim() == 2:
                shape[0] = len(marks)
            marked = value.masked_fill(marks.view(shape).to(value.device), math.nan)
            registry[name] = nn.Parameter(marked, requires_grad=False)
        yield
    finally:
        for registry, name, parameter in reversed(before):
            registry[name] = parameter


def spread_in_groups(x: Tensor, groups: int) -> Tensor:
    """A mark in one channel of a group of channels marks the whole group."""
    parts = x.unflatten(1, (groups, -1))
    return parts.masked_fill(parts.isnan().flatten(2).any(2)[(...,) + (None,) * (parts.dim() - 2)], math.nan).flatten(
        1, 2
    )


def map_tensors(output: Any, function: Any) -> Any:
    if isinstance(output, Tensor):
        return function(output) if output.is_floating_point() else output
    if isinstance(output, PackedSequence):
        return PackedSequence(map_tensors(output.data, function), *output[1:])
    if isinstance(output, tuple | list):
        return type(output)(map_tensors(item, function) for item in output)
    return output
