"""Shards: what this process holds of a parameter that FSDP2 has spread over several, and sums over all of them.

`torch.distributed.fsdp.fully_shard` (Zhao et al. 2023, "PyTorch FSDP") turns each parameter into a `DTensor` that is
cut along its first dimension; its gradient and its optimizer state are cut alike. Whatever is asked of a weight, the
answer is a small tensor (a number for each tile), so each process sums over its own rows and the small tensors are
added up: the weight itself is never gathered, but for packing, one parameter at a time. A stock tensor is one shard.
"""

import torch
from jaxtyping import Int
from torch import Tensor, nn

from .errors import invalid

ZERO3 = "DeepSpeed ZeRO-3 keeps the values of the parameters to itself, so that none can be scored or pruned"
REMEDY = "Train with FSDP2, which shards as much: examples/accelerate/fsdp2.yaml."


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a `DTensor`."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor  # here: builds without distributed training lack it

    return isinstance(tensor, DTensor)


def is_emptied(tensor: Tensor) -> bool:
    """Whether a parameter is a stand-in of DeepSpeed ZeRO-3, which keeps the values to itself."""
    return "ds_id" in vars(tensor)


def refuse_sharded(model: nn.Module, remedy: str) -> None:
    """Raise `DendriticError` for a model whose parameters are spread over processes already, by whatever engine."""
    for name, parameter in model.named_parameters():
        if is_sharded(parameter) or is_emptied(parameter):
            raise invalid("model", type(model).__name__, f"{name} is sharded over several processes already", remedy)
    for module in model.modules():
        if type(module).__name__ == "FullyShardedDataParallel":  # FSDP1, whose flat parameters have no rows left
            raise invalid("model", type(model).__name__, "is sharded by FSDP1 already", remedy)


def local(tensor: Tensor) -> Tensor:
    """The part that this process holds, without a gradient of its own; writing to it writes to the tensor."""
    return tensor.detach().to_local() if is_sharded(tensor) else tensor  # type: ignore[operator]


def held(tensor: Tensor) -> Int[Tensor, " held"] | None:
    """Ascending indices (int64) along the first dimension of what `local` holds; None for all of a stock tensor.

    Raises:
        DendriticError: the tensor is cut along another dimension (tensor parallelism) or along several.
    """
    if not is_sharded(tensor):
        return None
    cut = [axis for axis, placement in enumerate(tensor.placements) if not placement.is_replicate()]  # type: ignore
    if len(cut) > 1 or any(not tensor.placements[axis].is_shard(0) for axis in cut):  # type: ignore[attr-defined]
        rule = "only shards along the first dimension of a parameter can be scored and pruned"
        raise invalid("placements", tensor.placements, rule, "Train with FSDP2 alone.")  # type: ignore[attr-defined]
    first, count, part = 0, len(tensor), local(tensor)
    if cut:  # in equal parts but for the last ones, as `torch.chunk` cuts
        mesh = tensor.device_mesh  # type: ignore[attr-defined]
        each = -(-count // mesh.size(cut[0]))
        first = min(count, each * mesh.get_local_rank(cut[0]))
        count = min(each, count - first)
    assert len(part) == count
    return torch.arange(first, first + count, device=part.device)


def summed(partial: Tensor, like: Tensor) -> Tensor:
    """The sum over all shards of `like` of what each process makes of its own; the same on every process."""
    if not is_sharded(like):
        return partial
    from torch.distributed.tensor import DTensor, Partial, Replicate

    mesh = like.device_mesh  # type: ignore[attr-defined]
    placements = [Replicate() if placement.is_replicate() else Partial() for placement in like.placements]  # type: ignore
    spread = DTensor.from_local(partial.to(mesh.device_type), mesh, placements, run_check=False)
    return spread.full_tensor().to(partial.device)


def worst(value: float, like: Tensor) -> float:
    """The largest `value` of any process that holds a shard of `like`, so that all of them decide alike."""
    if not is_sharded(like):
        return value
    from torch.distributed.tensor import DTensor, Partial

    mesh = like.device_mesh  # type: ignore[attr-defined]
    spread = torch.tensor(value, device=mesh.device_type)
    return DTensor.from_local(spread, mesh, [Partial("max")] * mesh.ndim, run_check=False).full_tensor().item()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every process, without a gradient: gathered where it is sharded, itself where it is not."""
    if not is_sharded(tensor):
        return tensor.detach()
    mesh = tensor.device_mesh  # type: ignore[attr-defined]
    return tensor.detach().to(mesh.device_type).full_tensor()  # type: ignore[attr-defined]


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
