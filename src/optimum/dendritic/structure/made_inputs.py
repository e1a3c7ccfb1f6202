"""Example inputs of a model that nobody hands a batch: made from what its config says."""

from collections.abc import Iterator
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import invalid
from .example_inputs import as_mapping, decodes_text, of_length, repeat_first, tensors_of
from .probing import quiet

TEXT_LENGTH = 4
TIMED_LENGTH = 128
TRACING_IMAGE_SIZE = 64  # pixels; wiring does not depend on it, and small images trace fast
WAVEFORMS = (2000, 16000)  # numbers of samples that are tried; short ones trace fast
FRAMES = 16
REMEDY = "Pass example_inputs, e.g. one batch of the training data as a dict."

Inputs = dict[str, Tensor]
Fields = dict[Any, Any]


def example_inputs_for(model: nn.Module, *, image_size: int = 224) -> Inputs:
    """One sample of text, pixels or sound, or of several of them, that `model.forward` accepts, on the model's device.

    Args:
        image_size: height and width in pixels for image models whose config does not have an `image_size`.

    Raises:
        DendriticError: the model is not a `PreTrainedModel`, or it runs on nothing that can be made of its config.
    """
    if not isinstance(model, PreTrainedModel):
        raise invalid("model", type(model).__name__, "only a PreTrainedModel tells its inputs", REMEDY)
    tried = list(_tried(model, image_size))
    faults = []
    for inputs in tried:
        fault = fault_of(model, inputs) if len(tried) > 1 else None  # tracing tells of the only one
        if fault is None:
            return inputs
        faults.append(fault)
    known = f"does not run on inputs made from its config ({faults[-1]})" if faults else "has inputs of no known kind"
    raise invalid("main_input_name", model.main_input_name, known, REMEDY)


def timed_inputs_for(model: nn.Module) -> Inputs:
    """One sample of the size that models are measured with: 128 tokens, or as many as the model takes if that is fewer,
    or an image of the config's size."""
    inputs = example_inputs_for(model)
    if not isinstance(model, PreTrainedModel) or model.main_input_name != "input_ids":
        return inputs
    return of_length(inputs, min(TIMED_LENGTH, longest_text(model) or TIMED_LENGTH))


@torch.no_grad()
def fault_of(model: nn.Module, inputs: Any) -> str | None:
    """Why a model does not run on two samples like the first one of `inputs`; None where it does."""
    try:
        with quiet(model):
            outputs = tensors_of(model(**repeat_first(as_mapping(model, inputs), 2)))
    except Exception as error:  # any model may fail in any way
        return f"{type(error).__name__}: {error}"
    if not outputs:
        return "the outputs hold no tensors"
    return "the outputs contain NaN" if any(t.isnan().any() for t in outputs if t.is_floating_point()) else None


def longest_text(model: PreTrainedModel) -> int | None:
    """How many tokens the model has positions for; None where its config names no bound."""
    name = model.config.attribute_map.get("max_position_embeddings", "max_position_embeddings")
    return model.config.to_dict().get(name)


def _tried(model: PreTrainedModel, image_size: int) -> Iterator[Inputs]:
    """All that the forward pass can take, then the main input alone, in each shape that the config allows."""
    parameters, main, fields = signature(model.forward).parameters, model.main_input_name, model.config.to_dict()
    others = [name for name in ("input_ids", "pixel_values") if name in parameters and name != main]
    made = {name: _made(model, name, fields, image_size) for name in others}
    beside = {key: tensor for found in made.values() for inputs in found[:1] for key, tensor in inputs.items()}
    decoder = {"decoder_input_ids": _tokens(model)} if decodes_text(model) else {}
    dummies = model.dummy_inputs if main != "input_ids" else {}
    known = _made(model, main, fields, image_size) or ([dummies] if main in dummies else [])
    for inputs in known:
        if beside:
            yield inputs | beside | decoder
        yield inputs | decoder


def _made(model: PreTrainedModel, name: str, fields: Fields, image_size: int) -> list[Inputs]:
    if name == "input_ids":
        tokens = _tokens(model)
        return [{"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}]
    shapes = {"pixel_values": _images, "input_values": _sounds, "input_features": _features}.get(name)
    found = [] if shapes is None else shapes(fields, image_size)
    return [{name: _noise(model, shape)} for shape in found]


def _tokens(model: PreTrainedModel) -> Tensor:
    return torch.arange(TEXT_LENGTH, device=model.device)[None] % model.config.get_text_config().vocab_size


def _noise(model: PreTrainedModel, shape: tuple[int, ...]) -> Tensor:
    if model.device.type == "meta":  # whose config may ask for more than there is memory
        return torch.empty(shape, device="meta", dtype=model.dtype)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.device, model.dtype)


def _images(fields: Fields, image_size: int) -> list[tuple[int, ...]]:
    own = _part_with("image_size", fields) or fields
    size = own.get("image_size") or image_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return [(1, own.get("num_channels") or 3, height, width)]


def _sounds(fields: Fields, image_size: int) -> list[tuple[int, ...]]:
    """A spectrogram where the config tells its size, else a waveform, with an axis for its channel or without."""
    if {"max_length", "num_mel_bins"} <= fields.keys():
        return [(1, fields["max_length"], fields["num_mel_bins"])]
    return [(1, *channels, samples) for samples in WAVEFORMS for channels in ((), (1,))]


def _features(fields: Fields, image_size: int) -> list[tuple[int, ...]]:
    """Mel bins by frames where the config tells both; else frames by whatever number of features it names."""
    found: list[tuple[int, ...]] = []
    audio = _part_with("num_mel_bins", fields) or fields
    if "max_source_positions" in audio and "num_mel_bins" in audio:
        found.append((1, audio["num_mel_bins"], 2 * audio["max_source_positions"]))
    widths = [fields.get(key) for key in ("input_feat_per_channel", "feature_projection_input_dim", "num_mel_bins")]
    return found + [(1, FRAMES, width) for width in widths if width]


def _part_with(field: str, fields: Fields) -> Fields | None:
    """The config, or the first config inside it, that has a field."""
    if fields.get(field) is not None:
        return fields
    inner = (_part_with(field, value) for value in fields.values() if isinstance(value, dict))
    return next((found for found in inner if found is not None), None)
