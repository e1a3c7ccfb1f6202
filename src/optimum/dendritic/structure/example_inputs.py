"""Example inputs: what a model is fed when nobody hands in a batch, and how a batch is cut and repeated."""

import dataclasses
from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import invalid

LABELS = ("labels", "label", "label_ids", "next_sentence_label", "start_positions", "end_positions")
TEXT_LENGTH = 4
TRACING_IMAGE_SIZE = 64  # pixels; wiring does not depend on it, and small images trace fast


def example_inputs_for(model: nn.Module, *, image_size: int = 224) -> dict[str, Tensor]:
    """One sample of zeros-and-ones text or Gaussian pixels that `model.forward` accepts, on the model's device.

    Args:
        image_size: height and width in pixels for image models whose config has no `image_size`.

    Raises:
        DendriticError: the model is no `PreTrainedModel`, or its main input is neither text nor images.
    """
    remedy = "Pass example_inputs, e.g. one batch of the training data as a dict."
    if not isinstance(model, PreTrainedModel):
        raise invalid("model", type(model).__name__, "only a PreTrainedModel tells its inputs", remedy)
    fields = model.config.to_dict()
    if model.main_input_name == "input_ids":
        vocabulary = model.config.get_text_config().vocab_size
        tokens = torch.arange(TEXT_LENGTH, device=model.device)[None] % vocabulary
        text = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        decodes = fields.get("is_encoder_decoder") and "decoder_input_ids" in signature(model.forward).parameters
        return text | {"decoder_input_ids": tokens} if decodes else text
    if model.main_input_name == "pixel_values":
        size = fields.get("image_size") or image_size
        height, width = size if isinstance(size, list | tuple) else (size, size)
        shape = (1, fields.get("num_channels") or 3, height, width)
        pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        return {"pixel_values": pixels.to(model.device, model.dtype)}
    raise invalid("main_input_name", model.main_input_name, "is neither input_ids nor pixel_values", remedy)


def longest_text(model: PreTrainedModel) -> int | None:
    """How many tokens the model has positions for; None where its config names no bound."""
    name = model.config.attribute_map.get("max_position_embeddings", "max_position_embeddings")
    return model.config.to_dict().get(name)


def of_length(inputs: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
    """Text `[batch, tokens]`, repeated or cut to `length` tokens."""
    return {key: value.repeat(1, -(-length // value.shape[1]))[:, :length] for key, value in inputs.items()}


def as_mapping(model: nn.Module, example_inputs: Any) -> dict[str, Any]:
    """Example inputs as keyword arguments on the model's device, without labels.

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
    kept = {k: v for k, v in example_inputs.items() if k not in LABELS}
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in kept.items()}


def is_empty(batch: Mapping[str, Any]) -> bool:
    """Whether a batch has tensors, but no samples."""
    return any(isinstance(value, Tensor) and value.dim() > 0 and len(value) == 0 for value in batch.values())


def shapes(batch: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of a batch's tensors, for errors."""
    return {name: tuple(value.shape) for name, value in batch.items() if isinstance(value, Tensor)}


def repeat_first(inputs: Mapping[str, Any], samples: int) -> dict[str, Any]:
    """The first sample, `samples` times over: every tensor `[batch, ...]` becomes `[samples, ...]`."""
    return {
        k: v[:1].expand(samples, *v.shape[1:]) if isinstance(v, Tensor) and v.dim() else v for k, v in inputs.items()
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
