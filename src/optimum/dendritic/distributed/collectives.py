"""What the ranks of a distributed training agree on. With one process every tensor stays as it is.

Masks are chosen from what every rank shares: gradients that the engine has averaged, and whatever each rank measures on
inputs of its own averaged here. All ranks of the default process group train the same model, and all of them call.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")


def world_size() -> int:
    """Processes that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@torch.no_grad()
def mean_over_ranks(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The mean of each tensor over the ranks, the same bits on every rank; they travel as one, on the first's device.

    Args:
        tensors: floating point, of one dtype, with the same shapes on every rank.

    >>> mean_over_ranks([torch.ones(2)])
    [tensor([1., 1.])]
    """
    if world_size() == 1 or not tensors:
        return list(tensors)
    flat = torch.cat([tensor.detach().flatten().to(tensors[0].device) for tensor in tensors])
    dist.all_reduce(flat)
    parts = (flat / world_size()).split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape).to(tensor.device) for part, tensor in zip(parts, tensors, strict=True)]


def made_by_first_rank(make: Callable[[], T]) -> T:
    """What rank 0 makes, on every rank: measurements that no two ranks would make alike.

    >>> made_by_first_rank(lambda: 3)
    3
    """
    if world_size() == 1:
        return make()
    made: list[Any] = [make() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(made, src=0)
    return made[0]


@torch.no_grad()
def from_first_rank_(tensors: Iterable[Tensor]) -> None:
    """Overwrite each tensor by what rank 0 has in its place."""
    if world_size() == 1:
        return
    for tensor in tensors:
        sent = tensor.detach().contiguous()
        dist.broadcast(sent.view(torch.uint8) if sent.dtype == torch.bool else sent, src=0)
        tensor.copy_(sent)
