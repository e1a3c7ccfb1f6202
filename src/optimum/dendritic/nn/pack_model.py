"""From what is kept to the modules that hold it: the structure of packing, without deciding anything.

A layer alone packs to gather -> product -> scatter. Along a bundle that can be cut, the producers' scatter and the
reader's gather cancel: both become smaller layers, and per-channel followers between them shrink too.
"""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from ..layout.records import Bundle, Form, Recurrent, Run
from . import (
    RecurrentLayer,
    is_recurrent_layer,
    pack_layer,
    pack_recurrent,
    recurrent_layer,
    shrink_follower,
    weight_layer,
    widths,
)

Kept = Mapping[str, list[Tensor]]


def segments_reached(runs: Iterable[Run], channels: int, segment_size: int) -> Int[Tensor, " channels"]:
    """For each output channel the segment of the reader that it reaches, or -1. A segment is one block or more."""
    reached = torch.full((channels,), -1, dtype=torch.int64)
    for run in runs:
        blocks = torch.arange(run.count).repeat_interleave(run.size)
        reached[run.start : run.start + run.count * run.size] = (run.reach + blocks * run.width) // segment_size
    return reached


def alive_channels(runs: Iterable[Run], channels: int, alive: Tensor) -> Int[Tensor, " alive"]:
    """Ascending channels that reach a live input or none at all. `alive` is bool, `[inputs]` of the reader."""
    reached = segments_reached(runs, channels, 1)
    return ((reached < 0) | alive[reached.clamp(min=0)]).nonzero().flatten()


def inputs_fed(bundle: Bundle, inputs: int) -> Bool[Tensor, " inputs"]:
    """Inputs of the reader that the bundle's producers make; others come from elsewhere (a concatenation)."""
    fed = torch.zeros(inputs, dtype=torch.bool)
    for run in (run for producer in bundle.producers for run in producer.runs):
        fed[run.reach : run.reach + run.count * run.width] = True
    return fed


def pack_modules(model: nn.Module, kept: Kept, bundles: Iterable[Bundle]) -> dict[str, nn.Module]:
    """The replacement for every layer in `kept`, and for every follower that shrinks.

    Args:
        kept: for each layer to pack, the ascending inputs that each of its arbors reads, or, of a recurrent layer, the
            ascending hidden units that each keeps.
        bundles: those whose reader and producers all are in `kept`; others are ignored.
    """
    recurrent = [name for name in kept if is_recurrent_layer(model.get_submodule(name))]
    units = {name: pack_recurrent(recurrent_layer(model, name), kept[name]) for name in recurrent}
    kept = {name: keep for name, keep in kept.items() if name not in units}
    bundles = [b for b in bundles if b.reader in kept and all(p.name in kept for p in b.producers)]
    layers = {name: weight_layer(model, name) for name in kept}
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
        fed = inputs_fed(bundle, len(alive))
        arrives[bundle.reader] = (alive | ~fed).nonzero().flatten()  # what others feed into it arrives in full
        cut.update(producer.name for producer in bundle.producers)
        for follower in bundle.followers:
            module = model.get_submodule(follower.name)
            channels = sum(run.count * run.size for run in follower.runs)
            followers[follower.name] = shrink_follower(module, alive_channels(follower.runs, channels, alive))
    packed = {
        name: pack_layer(layer, kept[name], outputs[name], arrives[name], name in cut) for name, layer in layers.items()
    }
    return packed | units | followers


def stock_record(layer: nn.Module) -> Form | Recurrent:
    """The record of a plain stock layer, which may be smaller than it was."""
    if isinstance(layer, RecurrentLayer):
        return Recurrent(hidden=layer.hidden_size, kept=layer.hidden_size)
    inputs, outputs = widths(layer)
    return Form(inputs=inputs, outputs=outputs, kept=inputs, arbors=(outputs,), gather=False, scatter=False)


def last_readers(bundles: Iterable[Bundle]) -> list[str]:
    """Readers whose own outputs are not cut: their outputs keep their shape and judge the whole chain before them."""
    cut = {producer.name for bundle in bundles for producer in bundle.producers}
    return [bundle.reader for bundle in bundles if bundle.reader not in cut]
