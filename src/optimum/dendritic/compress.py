"""`compress_`: make an injected model physically small. What was zero is gone; the outputs stay."""

from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from .description import DENSE, describe, summary
from .errors import invalid
from .inject import TRACING_IMAGE_SIZE
from .inputs import as_mapping, example_inputs_for
from .layout import Bundle, Follower, Form, Layout, Record, Recurrent
from .native import native_
from .nn import PackedLayer, PackedRecurrent, RecurrentLayer, WeightLayer, follower_channels, widths
from .packing import last_readers, pack_modules
from .probing import outputs_differ, probe, quiet, tolerance
from .prune import mask_
from .record import dendritic_layers, injected_layout, set_layout
from .surgery import swap

logger = logging.get_logger(__name__)


@torch.no_grad()
def compress_(model: nn.Module, example_inputs: Any = None) -> nn.Module:
    """Pack every injected layer, in place: gather -> smaller product -> scatter, both gone along wires that are cut;
    recurrent layers with fewer hidden units.

    The packed model is verified against the masked one on `example_inputs`; a wire along which the outputs differ is
    not cut, and that is logged. A model that could not be traced has no wires to cut; where it does not run on the
    inputs either, it is packed layer by layer, with a warning.

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
    inputs = as_mapping(model, example_inputs or example_inputs_for(model, image_size=TRACING_IMAGE_SIZE))
    mask_(model)
    if layout.dials:
        return native_(model, inputs)
    with quiet(model):
        packed = _verified(model, list(layout.bundles), inputs)
    sizes = {name: _size(layer) for name, layer in dendritic_layers(model).items()}
    for name, injected in swap(model, packed).items():
        packed[name].train(injected.training)  # they were packed while the model was quiet
    records = {name: _record(module, name in layout.modules) for name, module in packed.items()}
    set_layout(model, Layout(layout.config, {**records}, dense_cost=layout.dense_cost))
    forms = {name: record for name, record in records.items() if isinstance(record, Form | Recurrent)}
    dense = [name for name, words in describe(model).items() if words == DENSE]
    shrunk = [name for name in forms if _size(packed[name]) < sizes[name]]
    logger.info(f"Packed {type(model).__name__}: {summary(forms, shrunk, layout.bundles, dense)}")
    return model


def _verified(model: nn.Module, bundles: list[Bundle], inputs: dict[str, Any]) -> dict[str, nn.Module]:
    """The packed modules, with every wire cut that can be; the model itself is as it was."""
    kept = {name: layer.kept() for name, layer in dendritic_layers(model).items()}
    readers = last_readers(bundles)
    try:
        expected = probe(model, inputs, readers)
    except Exception as error:
        if bundles:  # they were traced, so the model can run, and cutting them unverified is no option
            raise
        logger.warning(f"Packed without verification, the model does not run on the example inputs: {error}")
        return pack_modules(model, kept, bundles)

    def attempt(bundles: list[Bundle]) -> dict[str, nn.Module] | None:
        packed = pack_modules(model, kept, bundles)
        injected = swap(model, packed)
        try:
            differ = outputs_differ(expected, probe(model, inputs, readers))
        except Exception as error:  # whatever a model raises on a shrunken tensor, it cannot be cut there
            logger.info(f"Packing broke the forward pass: {error}")
            return None
        finally:
            swap(model, injected)
        return packed if differ <= tolerance(next(model.parameters()).dtype) else None

    packed = attempt(bundles)
    if packed is None:
        bundles = [_uncut(bundle) if attempt([bundle]) is None else bundle for bundle in bundles]
        packed = attempt(bundles)
    if packed is None:
        rule = "packing changes its outputs beyond rounding"
        raise invalid("model", type(model).__name__, rule, "It is still injected; please report it with its config.")
    return packed


def _uncut(bundle: Bundle) -> Bundle:
    logger.warning(f"{bundle.reader} keeps a gather: cutting its wire changes the outputs")
    return Bundle(bundle.reader, bundle.producers, bundle.followers, bundle.block, cut=False)


def _size(layer: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer.parameters(recurse=False))


def _record(module: nn.Module, was_injected: bool) -> Record:
    if not was_injected:
        return Follower(follower_channels(module) or 1)  # with one channel left it looks like any other layer
    if isinstance(module, PackedLayer | PackedRecurrent):
        return module.form
    if isinstance(module, RecurrentLayer):
        return Recurrent(module.hidden_size, module.hidden_size)
    assert isinstance(module, WeightLayer)
    inputs, outputs = widths(module)
    return Form(inputs, outputs, kept=inputs, arbors=(outputs,), gather=False, scatter=False)
