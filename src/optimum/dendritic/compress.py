"""`compress_`: make an injected model physically small. What was zero is gone; the outputs stay."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from .distributed.dtensor import reshard
from .errors import DendriticError
from .inspection.describe import dense_layers, summary
from .layout.layout import Layout
from .layout.records import Bundle, Follower, Form, Record, Recurrent
from .nn import DendriticLayer, PackedLayer, PackedRecurrent, follower_channels
from .nn.pack_model import last_readers, pack_modules, stock_record
from .nn.surgery import replace_
from .state import injected_layout, layers_in, set_layout
from .stock_config.convert import native_
from .structure.example_inputs import as_mapping
from .structure.made_inputs import TRACING_IMAGE_SIZE, example_inputs_for
from .structure.probing import probe, quiet
from .structure.readiness import refuse_unready
from .structure.verification import answers_alike, difference_of, exchanged
from .undo import all_or_nothing

logger = logging.get_logger(__name__)


@torch.no_grad()
def compress_(model: nn.Module, example_inputs: Any = None) -> nn.Module:
    """Pack every injected layer, in place: gather -> smaller product -> scatter, both gone along wires that are cut;
    recurrent layers with fewer hidden units.

    The packed model is verified against the masked one on `example_inputs`; a wire along which the outputs differ is
    not cut, and that is logged. A model that could not be traced has no wires to cut; where it does not run on the
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
        for layer in layers.values():
            notes.note_pruned(layer)
            layer.mask_()
        return native_(model, inputs, layout, layers) if layout.dials else _compress_(model, layout, layers, inputs)


def _compress_(
    model: nn.Module, layout: Layout, layers: Mapping[str, DendriticLayer], inputs: dict[str, Any]
) -> nn.Module:
    if all(bool(layer.dendrite_mask.all()) for layer in layers.values()):
        logger.warning(
            f"Nothing of {type(model).__name__} was pruned, so packing leaves it as large as it was. "
            "Call update_(model, sparsity) first, as a training or prune_ does."
        )
    with quiet(model):
        packed, replaced = _pack_verified_(model, layers, list(layout.bundles), inputs)
    for name, old in replaced.items():
        packed[name].train(old.training)  # they were packed while the model was quiet
    records = {name: _record(module, name in layout.modules) for name, module in packed.items()}
    set_layout(model, Layout(layout.config, {**records}, dense_cost=layout.dense_cost))
    forms = {name: record for name, record in records.items() if isinstance(record, Form | Recurrent)}
    dense = dense_layers(model, records)
    shrunk = [name for name in forms if _size(packed[name]) < _size(replaced[name])]
    logger.info(f"Packed {type(model).__name__}: {summary(forms, shrunk, layout.bundles, dense)}")
    return model


def _inputs(model: nn.Module, layout: Layout, example_inputs: Any) -> dict[str, Any]:
    """Nothing for a model that could not be traced when it was injected, if nothing is given or can be made."""
    try:
        return as_mapping(model, example_inputs or example_inputs_for(model, image_size=TRACING_IMAGE_SIZE))
    except DendriticError:
        if layout.positions or example_inputs:
            raise
        return {}


Modules = dict[str, nn.Module]


def _pack_verified_(
    model: nn.Module, layers: Mapping[str, DendriticLayer], bundles: list[Bundle], inputs: dict[str, Any]
) -> tuple[Modules, Modules]:
    """Pack with every wire cut that can be. Returns the packed modules, and those whose places they took."""
    kept = {name: layer.kept() for name, layer in layers.items()}
    readers, like = last_readers(bundles), next(model.parameters())
    try:
        expected = probe(model, inputs, readers)
    except Exception as error:
        if injected_layout(model).positions:  # it was traced, so it can run, and packing unproved is not an option
            raise
        logger.warning(f"Packed without verification, the model does not run on the example inputs: {error}")
        reshard(model)
        packed = pack_modules(model, kept, bundles)
        return packed, replace_(model, packed)[0]
    reshard(model)

    def proved(bundles: list[Bundle], keep: bool = True) -> tuple[Modules, Modules] | None:
        packed = pack_modules(model, kept, bundles)
        with exchanged(model, packed) as exchange:
            if not answers_alike(model, inputs, expected, readers, like=like):
                return None
            exchange.keep = keep
        return packed, exchange.replaced

    found = proved(bundles)
    if found is None:
        found = proved([bundle if proved([bundle], keep=False) else _uncut(bundle) for bundle in bundles])
    if found is None:
        raise difference_of(model, inputs, expected, readers, like=like)
    return found


def _uncut(bundle: Bundle) -> Bundle:
    logger.warning(f"{bundle.reader} keeps a gather: cutting its wire changes the outputs")
    return replace(bundle, cut=False)


def _size(layer: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer.parameters(recurse=False))


def _record(module: nn.Module, was_injected: bool) -> Record:
    """What the layout says of a module that stands in the packed model."""
    if not was_injected:
        return Follower(follower_channels(module) or 1)  # with one channel left it looks like any other layer
    if isinstance(module, PackedLayer | PackedRecurrent):
        return module.form
    return stock_record(module)
