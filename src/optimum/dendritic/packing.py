"""From what is kept to the modules that hold it: the structure of packing, without deciding anything.

A layer alone packs to gather -> product -> scatter. Along a bundle that can be cut, the producers' scatter and the
reader's gather cancel: both become smaller layers, and per-channel followers between them shrink too.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .inputs import tensors_of
from .layout import Bundle, Run
from .nn import pack_layer, shrink_follower, stock_type

Kept = Mapping[str, list[Tensor]]


def widths(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a Linear, Conv2d or Conv1D by its weight."""
    rows, columns = layer.weight.shape[:2]
    return (rows, columns) if issubclass(stock_type(layer), Conv1D) else (columns, rows)


def segments_reached(runs: Iterable[Run], channels: int, segment_size: int) -> Int[Tensor, " channels"]:
    """For each output channel the reader's segment that it reaches, -1 for none; segments are multiples of blocks."""
    reached = torch.full((channels,), -1, dtype=torch.int64)
    for run in runs:
        blocks = torch.arange(run.count).repeat_interleave(run.size)
        reached[run.start : run.start + run.count * run.size] = (run.reach + blocks * run.width) // segment_size
    return reached


def alive_channels(runs: Iterable[Run], channels: int, alive: Tensor) -> Int[Tensor, " alive"]:
    """Ascending channels that reach a live input; `alive` is bool `[inputs]` of the reader. Unread channels stay."""
    reached = segments_reached(runs, channels, 1)
    return ((reached < 0) | alive[reached.clamp(min=0)]).nonzero().flatten()


def pack_modules(model: nn.Module, kept: Kept, bundles: Iterable[Bundle]) -> dict[str, nn.Module]:
    """The replacement for every layer in `kept`, and for every follower that shrinks.

    Args:
        kept: for each layer to pack, the ascending inputs that each of its arbors reads.
        bundles: those whose reader and producers all are in `kept`; others are ignored.
    """
    bundles = [b for b in bundles if b.reader in kept and all(p.name in kept for p in b.producers)]
    layers = {name: model.get_submodule(name) for name in kept}
    union = {name: torch.cat(keep).unique() for name, keep in kept.items()}
    arrives = {name: torch.arange(widths(layer)[0]) for name, layer in layers.items()}
    outputs = {name: torch.arange(widths(layer)[1]) for name, layer in layers.items()}
    cut: set[str] = set()
    followers: dict[str, nn.Module] = {}
    for bundle in bundles:
        alive = torch.zeros(len(arrives[bundle.reader]), dtype=torch.bool)
        alive[union[bundle.reader]] = True
        for producer in bundle.producers:
            outputs[producer.name] = alive_channels(producer.runs, len(outputs[producer.name]), alive)
        if not bundle.cut or not alive.any():
            continue  # an empty tensor between them would break reshapes: zeros of full width are left there
        arrives[bundle.reader] = union[bundle.reader]
        cut.update(producer.name for producer in bundle.producers)
        for follower in bundle.followers:
            module = model.get_submodule(follower.name)
            channels = sum(run.count * run.size for run in follower.runs)
            followers[follower.name] = shrink_follower(module, alive_channels(follower.runs, channels, alive))
    packed = {
        name: pack_layer(layer, kept[name], outputs[name], arrives[name], name in cut) for name, layer in layers.items()
    }
    return packed | followers


def probe(model: nn.Module, inputs: Mapping[str, Any], readers: Iterable[str]) -> list[Tensor]:
    """The model's outputs, then those of the layers `readers`: a difference shows where it arises, not only at the end."""
    seen: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda m, a, output, name=name: seen.update({name: output}))
        for name in readers
    ]
    try:
        outputs = model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return [*tensors_of(outputs), *(seen[name] for name in sorted(seen))]


def last_readers(bundles: Iterable[Bundle]) -> list[str]:
    """Readers whose own outputs are not cut: their outputs keep their shape and judge the whole chain before them."""
    cut = {producer.name for bundle in bundles for producer in bundle.producers}
    return [bundle.reader for bundle in bundles if bundle.reader not in cut]


def outputs_differ(expected: list[Tensor], actual: list[Tensor]) -> float:
    """Largest difference of any pair, relative to the largest value of the expected one; inf where shapes or NaN differ."""
    if len(expected) != len(actual) or any(a.shape != b.shape for a, b in zip(expected, actual, strict=True)):
        return math.inf
    worst = 0.0
    for a, b in zip(expected, actual, strict=True):
        if a.numel() and a.is_floating_point():
            scale = a.abs().max().clamp(min=torch.finfo(a.dtype).tiny)
            difference = ((a - b).abs().max() / scale).item()
            worst = max(worst, math.inf if math.isnan(difference) else difference)
    return worst


def tolerance(dtype: torch.dtype) -> float:
    """Relative difference that reordered sums may make: rtol 1e-4 in fp32, a few units in the last place below."""
    return 1e-4 if dtype in (torch.float32, torch.float64) else 32 * torch.finfo(dtype).eps
