"""Shards: what this process holds of a parameter that FSDP2 has spread over several, and sums over all of them.

`torch.distributed.fsdp.fully_shard` (Zhao et al. 2023, "PyTorch FSDP") turns each parameter into a `DTensor` that is
cut along its first dimension; its gradient and its optimizer state are cut alike. Whatever is asked of a weight, the
answer is a small tensor (a number for each tile), so each process sums over its own rows and the small tensors are
added up: the weight itself is never gathered, but for packing, one parameter at a time. A stock tensor is one shard.
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ..errors import invalid

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

ZERO3 = "DeepSpeed ZeRO-3 keeps the values of the parameters to itself, so that none can be scored or pruned"
REMEDY = "Train with FSDP2, which shards as much: examples/accelerate/fsdp2.yaml."


def sharded(tensor: Tensor) -> "DTensor | None":
    """A tensor that is spread over several processes; None for a stock one."""
    if not torch.distributed.is_available():
        return None
    from torch.distributed.tensor import DTensor  # here: builds without distributed training lack it

    return tensor if isinstance(tensor, DTensor) else None


def is_emptied(tensor: Tensor) -> bool:
    """Whether a parameter is a stand-in of DeepSpeed ZeRO-3, which keeps the values to itself."""
    return "ds_id" in vars(tensor)


def refuse_sharded(model: nn.Module, remedy: str) -> None:
    """Raise `DendriticError` for a model whose parameters are spread over processes already, by whatever engine."""
    for name, parameter in model.named_parameters():
        if sharded(parameter) is not None or is_emptied(parameter):
            raise invalid("model", type(model).__name__, f"{name} is sharded over several processes already", remedy)
    for module in model.modules():
        if type(module).__name__ == "FullyShardedDataParallel":  # FSDP1, whose flat parameters have no rows left
            raise invalid("model", type(model).__name__, "is sharded by FSDP1 already", remedy)


def local(tensor: Tensor) -> Tensor:
    """The part that this process holds, without a gradient of its own; writing to it writes to the tensor."""
    spread = sharded(tensor.detach())
    return tensor if spread is None else spread.to_local()


def held(tensor: Tensor) -> Int[Tensor, " held"] | None:
    """Ascending indices (int64) along the first dimension of what `local` holds; None for all of a stock tensor.

    Raises:
        DendriticError: the tensor is cut along another dimension (tensor parallelism) or along several.
    """
    spread = sharded(tensor)
    if spread is None:
        return None
    cut = [axis for axis, placement in enumerate(spread.placements) if not placement.is_replicate()]
    if len(cut) > 1 or any(not spread.placements[axis].is_shard(0) for axis in cut):
        rule = "only shards along the first dimension of a parameter can be scored and pruned"
        raise invalid("placements", spread.placements, rule, "Train with FSDP2 alone.")
    first, count, part = 0, len(tensor), local(tensor)
    if cut:  # in equal parts but for the last ones, as `torch.chunk` cuts
        each = -(-count // spread.device_mesh.size(cut[0]))
        first = min(count, each * spread.device_mesh.get_local_rank(cut[0]))
        count = min(each, count - first)
    assert len(part) == count
    return torch.arange(first, first + count, device=part.device)


def summed(partial: Tensor, like: Tensor) -> Tensor:
    """The sum over all shards of `like` of what each process makes of its own; the same on every process."""
    spread = sharded(like)
    if spread is None:
        return partial
    from torch.distributed.tensor import DTensor, Partial, Replicate

    mesh = spread.device_mesh
    placements = [Replicate() if placement.is_replicate() else Partial() for placement in spread.placements]
    parts = DTensor.from_local(partial.to(mesh.device_type), mesh, placements, run_check=False)
    return parts.full_tensor().to(partial.device)


def worst(value: float, like: Tensor) -> float:
    """The largest `value` of any process that holds a shard of `like`, so that all of them decide alike."""
    spread = sharded(like)
    if spread is None:
        return value
    from torch.distributed.tensor import DTensor, Partial

    mesh = spread.device_mesh
    own = torch.tensor(value, device=mesh.device_type)
    return DTensor.from_local(own, mesh, [Partial("max")] * mesh.ndim, run_check=False).full_tensor().item()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every process, without a gradient: gathered where it is sharded, itself where it is not."""
    spread = sharded(tensor)
    if spread is None:
        return tensor.detach()
    there = sharded(tensor.detach().to(spread.device_mesh.device_type))  # where its collectives work
    assert there is not None
    return there.full_tensor()


def put_(tensor: Tensor, value: Tensor) -> None:
    """Set a tensor to `value`, which has all of its entries; each process writes what it holds."""
    own = held(tensor)
    local(tensor).copy_(value if own is None else value.index_select(0, own.to(value.device)))


def unwrapped(module: nn.Module) -> type[nn.Module]:
    """The class of a module, or the one that `fully_shard` mixed `FSDPModule` into."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        from torch.distributed.fsdp import FSDPModule

        if isinstance(module, FSDPModule):
            order = type(module).__mro__
            return order[order.index(FSDPModule) + 1]
    return type(module)


def reshard(model: nn.Module) -> None:
    """Let every parameter that FSDP2 left whole after a forward pass be its shard again, whose changes last.

    Raises:
        DendriticError: DeepSpeed ZeRO-3 has emptied the parameters.
    """
    first = next(model.parameters(), None)
    if first is not None and is_emptied(first):
        raise invalid("parameter.ds_shape", tuple(vars(first)["ds_shape"]), ZERO3, REMEDY)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        from torch.distributed.fsdp import FSDPModule

        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
