"""Tensors that travel between devices together: each transfer waits for the device, however little it carries."""

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import torch
from jaxtyping import UInt8
from torch import Tensor

K = TypeVar("K", bound=Hashable)
CPU = torch.device("cpu")


def on_cpu(tensors: Mapping[K, Tensor]) -> dict[K, Tensor]:
    """The tensors on the CPU, in one transfer for each device that they come from; those that are there already are
    the same tensors.

    >>> on_cpu({"mask": torch.tensor([True])})
    {'mask': tensor([True])}
    """
    return _moved(tensors, dict.fromkeys(tensors, CPU))


def beside(tensors: Mapping[K, Tensor], others: Mapping[K, Tensor]) -> dict[K, Tensor]:
    """Each of the tensors on the device of the one that has its name among the others, as `on_cpu`.

    >>> beside({"mask": torch.tensor([True])}, {"mask": torch.zeros(2)})
    {'mask': tensor([True])}
    """
    return _moved(tensors, {name: others[name].device for name in tensors})


def _moved(tensors: Mapping[K, Tensor], devices: Mapping[K, torch.device]) -> dict[K, Tensor]:
    moved, ways = dict(tensors), dict[tuple[torch.device, torch.device], list[K]]()
    for name, tensor in tensors.items():
        if tensor.device != devices[name]:
            ways.setdefault((tensor.device, devices[name]), []).append(name)
    for (_, device), names in ways.items():
        own = [tensors[name].detach() for name in names]
        moved |= zip(names, unpacked(packed(own).to(device), own), strict=True)
    return moved


def packed(tensors: Sequence[Tensor]) -> UInt8[Tensor, " bytes"]:
    """All entries as bytes, one tensor after another, the widest type first, so that each begins where its type may."""
    ordered = sorted(tensors, key=Tensor.element_size, reverse=True)
    return torch.cat([tensor.contiguous().flatten().view(torch.uint8) for tensor in ordered])


def unpacked(data: UInt8[Tensor, " bytes"], like: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that were `packed`, in the order, types and shapes of `like`.

    >>> tensors = [torch.tensor([True, False]), torch.tensor([[1.5], [2.0]])]
    >>> unpacked(packed(tensors), tensors)
    [tensor([ True, False]), tensor([[1.5000],
            [2.0000]])]
    """
    order = sorted(range(len(like)), key=lambda index: like[index].element_size(), reverse=True)
    parts = data.split([like[index].numel() * like[index].element_size() for index in order])
    found = {
        index: part.view(like[index].dtype).view(like[index].shape) for index, part in zip(order, parts, strict=True)
    }
    return [found[index] for index in range(len(like))]
