"""`compress_`: make an injected model physically small. What was zero is gone; the outputs stay."""

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from .distributed.dtensor import refuse_sharded, reshard
from .errors import DendriticError
from .inspection.describe import dense_layers, summary
from .inspection.groups import left_in
from .layout.layout import Layout
from .layout.records import Follower, Form, Group, Record, Recurrent, Skipped
from .nn import DendriticLayer, PackedLayer, PackedRecurrent, channels_of
from .nn.dormant import Dormant, holding
from .nn.pack_model import Packed, can_stay_wide, last_consumers, pack_modules, stock_record, without_blocks
from .nn.surgery import replace_
from .nn.waking import attach_
from .sizes import entries_left, narrowed
from .state import gates_in, injected_layout, kept_in, layers_in, set_layout, split_stacks
from .stock_config.convert import native_
from .structure.example_inputs import as_mapping
from .structure.made_inputs import TRACING_IMAGE_SIZE, example_inputs_for
from .structure.probing import probe, quiet
from .structure.ranking import AllGates, ranking_of
from .structure.readiness import refuse_unready
from .structure.stacks import skipping
from .structure.verification import answers_alike, difference_of, exchanged
from .undo import all_or_nothing

logger = logging.get_logger(__name__)


@torch.no_grad()
def compress_(model: nn.Module, example_inputs: Any = None) -> nn.Module:
    """Pack every injected layer, in place: gather -> smaller product -> scatter, both gone in groups that are cut;
    recurrent layers with fewer hidden units.

    The packed model is verified against the masked one on `example_inputs`; a group whose cutting changes the outputs
    is not cut, and that is logged. A model that could not be traced has no groups to cut; where it does not run on the
    inputs either, it is packed layer by layer, with a warning.

    Every process of a model that FSDP2 has sharded calls this with the same inputs, and ends with the same stock model
    of small layers. A layer is gathered, packed and dropped before the next one; what is not a target is gathered last.
    So a process holds its shards, the packed model and one layer at most.

    Args:
        model: a model that `inject_` prepared.
        example_inputs: keyword arguments of `model.forward`; default: made from the config of a `PreTrainedModel`.

    What became of each layer is logged at info level, and told by `describe(model)`.

    Returns:
        `model`; `model.config.quantization_config` describes it. With `native` it is a stock model of a stock config.

    Raises:
        DendriticError: the model is not injected, or packing changes its outputs; it is then as it was.
    """
    layout = injected_layout(model)
    layers = layers_in(model, layout)
    refuse_unready(model)
    inputs = _inputs(model, layout, example_inputs)
    reshard(model)
    with all_or_nothing() as notes:
        notes.note_modules(model)
        gates = gates_in(model, layout, layers)
        for gate in gates.values():
            notes.note_pruned(gate)
            gate.mask_()
        if layout.config.dormant is not None:
            return _compress_apart_(model, layout, layers, gates, inputs, dormant=layout.config.dormant)
        return native_(model, inputs, layout, layers) if layout.dials else _compress_(model, layout, layers, inputs)


def _compress_apart_(
    model: nn.Module,
    layout: Layout,
    layers: dict[str, DendriticLayer],
    gates: AllGates,
    inputs: dict[str, Any],
    *,
    dormant: float,
) -> nn.Module:
    """Pack the model twice: the core in place, and what is masked at present as the awake model that belongs to it."""
    refuse_sharded(model, "Leave dormant out of its config.")
    awake = copy.deepcopy(model)
    larger = replace(layout, config=replace(layout.config, sparsity=dormant, dormant=None))
    set_layout(awake, larger)
    outer = entries_left(model, layout, layers)
    _compress_(awake, larger, layers_in(awake, larger), inputs)
    with narrowed(model, gates, ranking_of(model, layout, layers, gates).choose(layout.sparsity)):
        inner = entries_left(model, layout, layers)
        _compress_(model, layout, layers, inputs)
    grids = {
        name: tuple(torch.searchsorted(*pair) for pair in zip(outer[name], inner[name], strict=True))
        for name in outer.keys() & inner.keys()
    }
    attach_(model, Dormant(awake, holding(model, awake, grids), layout.config.segment_size))
    return model


def _compress_(
    model: nn.Module, layout: Layout, layers: Mapping[str, DendriticLayer], inputs: dict[str, Any]
) -> nn.Module:
    if all(bool(layer.dendrite_mask.all()) for layer in layers.values()):
        logger.warning(
            f"Nothing of {type(model).__name__} was pruned, so packing leaves it as large as it was. "
            "Call update_(model, sparsity) first, as a training or prune_ does."
        )
    left = left_in(model, layout, layers)
    with quiet(model):
        packed, replaced = _pack_verified_(model, layout, layers, inputs)
    for name, old in replaced.items():  # they were packed while the model was quiet
        if name in packed.modules:
            packed.modules[name].train(old.training)
        else:
            packed.stacks[name].training = old.training
    between = {member.name for group in layout.groups for member in group.passers}
    records = {
        name: _record(module, name in between or isinstance(module, nn.Embedding))
        for name, module in packed.modules.items()
    }
    records |= {name: Skipped(returns) for name, returns in packed.skipped.items()}
    shapes = {name: tuple(parameter.shape) for name, parameter in packed.parameters.items()}
    cut: dict[str, Any] = {"parameters": shapes, "numbers": packed.numbers, "allowed": layout.allowed, "left": left}
    cut["factored"] = layout.factored
    set_layout(model, Layout(config=layout.config, modules={**records}, dense_cost=layout.dense_cost, **cut))
    forms = {name: record for name, record in records.items() if isinstance(record, Form | Recurrent)}
    dense = dense_layers(model, records)
    shrunk = [name for name in forms if _size(packed.modules[name]) < _size(replaced[name])]
    logger.info(f"Packed {type(model).__name__}: {summary(forms, shrunk, layout.groups, dense)}")
    return model


def _inputs(model: nn.Module, layout: Layout, example_inputs: Any) -> dict[str, Any]:
    """Nothing for a model that could not be traced when it was injected, if nothing is given or can be made."""
    try:
        return as_mapping(model, example_inputs or example_inputs_for(model, image_size=TRACING_IMAGE_SIZE))
    except DendriticError:
        if layout.positions or example_inputs:
            raise
        return {}


def _pack_verified_(
    model: nn.Module, layout: Layout, layers: Mapping[str, DendriticLayer], inputs: dict[str, Any]
) -> tuple[Packed, dict[str, nn.Module]]:
    """Pack with every group cut that can be. Returns what is packed, and the modules whose places were taken."""
    kept, alive = kept_in(model, layout, layers)
    stacks, groups = split_stacks(layers)[0], list(layout.groups)
    skipped = [f"{name}.{index}" for name, stack in stacks.items() for index in stack.skipped()]
    gone = tuple(f"{name}." for name in skipped)
    consumers = [name for name in last_consumers(groups) if not name.startswith(gone)]
    like = next(model.parameters())
    try:
        with skipping(model, skipped) as returns:
            expected = probe(model, inputs, consumers)
    except Exception as error:
        if layout.positions:  # it was traced, so it can run, and packing unproved is not an option
            raise
        logger.warning(f"Packed without verification, the model does not run on the example inputs: {error}")
        reshard(model)
        packed = pack_modules(model, kept, groups)
        return packed, replace_(model, packed.modules, packed.parameters, packed.numbers)[0]
    reshard(model)

    def proved(groups: list[Group], keep: bool = True) -> tuple[Packed, dict[str, nn.Module]] | None:
        packed = without_blocks(pack_modules(model, kept, groups, alive), stacks, returns)
        modules = {**packed.modules, **packed.stacks}
        with ExitStack() as undo:
            for stack in stacks.values():
                stack.close_gates()
                undo.callback(stack.open_gates)
            with exchanged(model, modules, packed.parameters, packed.numbers) as exchange:
                if not answers_alike(model, inputs, expected, consumers, like=like):
                    return None
                exchange.keep = keep
            if keep:
                undo.pop_all()
        return packed, exchange.replaced

    found = proved(groups)
    if found is None:
        found = proved([group if proved([group], keep=False) else _uncut(model, group) for group in groups])
    if found is None:
        raise difference_of(model, inputs, expected, consumers, like=like)
    return found


def _uncut(model: nn.Module, group: Group) -> Group:
    """The group with zeros in the places of dead channels, if it can have them; a stream and its norms cannot."""
    if not can_stay_wide(model, group):
        return group
    logger.warning(f"{group.host} keeps a gather: cutting its {group.kind} changes the outputs")
    return replace(group, cut=False)


def _size(layer: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer.parameters(recurse=False))


def _record(module: nn.Module, between: bool) -> Record:
    if between:
        return Follower(channels_of(module) or 1)  # a depthwise convolution of one channel looks like any other layer
    if isinstance(module, PackedLayer | PackedRecurrent):
        return module.form
    return stock_record(module)
