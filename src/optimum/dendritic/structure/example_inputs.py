"""Example inputs: keyword arguments of a forward pass, checked, cut and repeated; and the tensors of its answer."""

import dataclasses
from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import invalid

LABELS = ("labels", "label", "label_ids", "next_sentence_label", "start_positions", "end_positions")


def of_length(inputs: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
    """Inputs whose text `[batch, tokens]` is repeated or cut to `length` tokens."""
    return {
        key: value.repeat(1, -(-length // value.shape[1]))[:, :length] if value.dim() == 2 else value
        for key, value in inputs.items()
    }


def as_mapping(model: nn.Module, example_inputs: Any) -> dict[str, Any]:
    """Example inputs as keyword arguments on the model's device, without labels.

    The labels of a model that decodes become the inputs of its decoder where there are none: which of them it reads in
    which order makes no difference to its wiring.

    Raises:
        DendriticError: `example_inputs` is not a mapping with at least one tensor, or holds no samples.
    """
    if not isinstance(example_inputs, Mapping) or not any(isinstance(v, Tensor) for v in example_inputs.values()):
        remedy = "Pass keyword arguments of model.forward, e.g. {'pixel_values': images}."
        raise invalid("example_inputs", type(example_inputs).__name__, "must be a mapping with tensors", remedy)
    if is_empty(example_inputs):
        rule = "holds no samples"
        raise invalid("example_inputs", shapes(example_inputs), rule, "Pass a batch of at least one sample.")
    device = next(model.parameters()).device
    kept = _as_decoder_inputs(model, example_inputs) | {k: v for k, v in example_inputs.items() if k not in LABELS}
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in kept.items()}


def _as_decoder_inputs(model: nn.Module, example_inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    labels, given = example_inputs.get("labels"), {"decoder_input_ids", "decoder_inputs_embeds"} & example_inputs.keys()
    if given or not isinstance(labels, Tensor) or labels.dim() != 2 or labels.is_floating_point():
        return {}
    decodes = isinstance(model, PreTrainedModel) and decodes_text(model)
    return {"decoder_input_ids": labels.clamp(min=0)} if decodes else {}


def decodes_text(model: PreTrainedModel) -> bool:
    """Whether a model has a decoder that reads tokens of its own."""
    encodes_first = bool(model.config.to_dict().get("is_encoder_decoder"))
    return encodes_first and "decoder_input_ids" in signature(model.forward).parameters


def is_empty(batch: Mapping[str, Any]) -> bool:
    """Whether a batch has tensors, but no samples."""
    return any(isinstance(value, Tensor) and value.dim() > 0 and len(value) == 0 for value in batch.values())


def shapes(batch: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of a batch's tensors, for errors."""
    return {name: tuple(value.shape) for name, value in batch.items() if isinstance(value, Tensor)}


def repeat_first(inputs: Mapping[str, Any], samples: int) -> dict[str, Any]:
    """The first sample, `samples` times over: every tensor `[batch, ...]` becomes `[samples, ...]`."""
    return {
        key: torch.cat([value[:1]] * samples) if isinstance(value, Tensor) and value.dim() else value
        for key, value in inputs.items()
    }


def tensors_of(outputs: Any) -> list[Tensor]:
    """Every tensor in a model's outputs (a tensor, `ModelOutput`, dataclass, mapping or sequence), in order."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    elif dataclasses.is_dataclass(outputs) and not isinstance(outputs, type):
        outputs = [getattr(outputs, field.name) for field in dataclasses.fields(outputs)]
    if isinstance(outputs, list | tuple):
        return [tensor for item in outputs for tensor in tensors_of(item)]
    return []
