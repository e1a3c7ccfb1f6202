"""The tensors of the awake model, put together from those of its file and those of the core."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...functional.dormant import inside
from ...layout.strict_json import bad
from ...nn.dormant import Grid
from ...unofficial import tensors_in
from .tensors import ascending


@torch.no_grad()
def fill_(awake: nn.Module, core: PreTrainedModel, tensors: Mapping[str, Tensor]) -> dict[str, Grid]:
    """Put the tensors of the file, and where it has none those of the core, into the skeleton of the awake model.

    Returns:
        Where the tensors of the core stand in those of the awake model, by name.

    Raises:
        CheckpointError: a tensor is missing, unknown, or does not fit.
    """
    theirs, grids, made = dict(core.named_modules()), dict[str, Grid](), dict[int, Any]()
    used = {name for name in tensors if "#" in name}
    for prefix, module in awake.named_modules():
        shared = tensors_in(theirs[prefix]) if prefix in theirs else ({}, {})
        for registry, other in zip(tensors_in(module), shared, strict=True):
            for key, empty in registry.items():
                name = f"{prefix}.{key}" if prefix else key
                if empty is None:
                    continue
                if id(empty) in made and name not in tensors:
                    registry[key] = made[id(empty)]
                    continue
                known, grid = other.get(key), _grid(name, tensors)
                if grid is not None:
                    if name not in tensors:
                        raise bad(name, "missing", "must be in the file beside its grid")
                    grids[name] = grid
                    value = _merged(name, tensors[name], known, grid, empty)
                elif name in tensors:
                    value = tensors[name]
                else:
                    value = known
                if value is None or tuple(value.shape) != tuple(empty.shape):
                    found = None if value is None else tuple(value.shape)
                    raise bad(name, found, f"must have the shape {tuple(empty.shape)} that its layout records")
                if value.is_floating_point() != empty.is_floating_point():
                    raise bad(name, value.dtype, f"must have the dtype {empty.dtype}")
                if value is not known:
                    used.add(name)
                    moved = value.to(core.device, core.dtype if value.is_floating_point() else value.dtype)
                    value = nn.Parameter(moved, False) if isinstance(empty, nn.Parameter) else moved
                registry[key] = made[id(empty)] = value
    if tensors.keys() - used:
        raise bad(sorted(tensors.keys() - used)[0], "unknown", "is not a tensor of the awake model")
    return grids


def _grid(name: str, tensors: Mapping[str, Tensor]) -> Grid | None:
    axes = []
    while f"{name}#{len(axes)}" in tensors:
        axes.append(tensors[f"{name}#{len(axes)}"])
    return tuple(axes) or None


def _merged(name: str, rest: Tensor, core: Tensor | None, grid: Grid, empty: Tensor) -> Tensor:
    """A tensor of the awake model from what the core has of it and the rest."""
    if core is None or core.dim() != empty.dim() or len(grid) > empty.dim():
        raise bad(name, len(grid), "must be a tensor of the core, too, with an axis for each of its grids")
    for axis, entries in enumerate(grid):
        fits = entries.dtype == torch.int64 and entries.shape == core.shape[axis : axis + 1]
        if not fits or not ascending(entries, empty.shape[axis]):
            raise bad(f"{name}#{axis}", tuple(entries.shape), f"must ascend strictly within [0, {empty.shape[axis]})")
    if core.shape[len(grid) :] != empty.shape[len(grid) :] or rest.shape != (empty.numel() - core.numel(),):
        raise bad(name, tuple(rest.shape), "must be all that the core does not have")
    on, core = inside(empty.shape, grid), core.detach().cpu()
    full = torch.empty(empty.shape, dtype=core.dtype)
    full[on], full[~on] = core.flatten(), rest.to(core.dtype)
    return full
