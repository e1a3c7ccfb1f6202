"""Example inputs of a model out of a batch that it, or what is wrapped around it, is trained on."""

from collections.abc import Iterator, Mapping
from inspect import Signature, signature
from typing import Any

import torch
from torch import Tensor, nn

from .example_inputs import LABELS, as_mapping, is_empty
from .made_inputs import TRACING_IMAGE_SIZE, fault_of
from .probing import quiet

SHORT = 8  # tokens; wiring does not depend on their number, and short texts trace fast
SHORT_WAVEFORM = 2000
Inputs = dict[str, Any]


class _Arrived(Exception):
    """The inner model was called: nothing needs to run any further."""


def inputs_from_batch(model: nn.Module, wrapper: nn.Module, batch: Any) -> Inputs | None:
    """Keyword arguments of `model.forward` out of a batch, small if the model runs on small ones.

    Args:
        wrapper: `model` itself, or a module that calls it. What arrives at `model` when the wrapper is called with the
            batch is taken; where the wrapper cannot be called so, what the batch names as `model` does: the
            `anchor_input_ids` of a batch are `input_ids`.

    Returns:
        None where the model runs on nothing of the batch.
    """
    if not isinstance(batch, Mapping) or is_empty(batch):
        return None
    found = [] if wrapper is model else [_arriving(model, wrapper, batch)]
    for inputs in [*found, _accepted(model, batch), _named_alike(model, batch)]:
        for shorter in () if inputs is None else _small(inputs):
            if any(isinstance(value, Tensor) for value in shorter.values()) and fault_of(model, shorter) is None:
                return as_mapping(model, shorter)
    return None


def _accepted(model: nn.Module, batch: Mapping[str, Any]) -> Inputs:
    """What of the batch the model takes: all of it where its forward pass takes any keyword."""
    parameters = signature(model.forward).parameters
    free = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    tensors = {name for name, value in batch.items() if isinstance(value, Tensor)}
    return {
        name: value for name, value in batch.items() if name in parameters or (free and name in tensors - {*LABELS})
    }


def _named_alike(model: nn.Module, batch: Mapping[str, Any]) -> Inputs | None:
    """Of the first of several groups of inputs those that the model takes by the ends of their names."""
    parameters = signature(model.forward).parameters
    prefixes = [key.removesuffix(name) for key in batch for name in parameters if key.endswith(f"_{name}")]
    if not prefixes:
        return None
    named = {key.removeprefix(prefixes[0]): value for key, value in batch.items() if key.startswith(prefixes[0])}
    return {name: value for name, value in named.items() if name in parameters}


@torch.no_grad()
def _arriving(model: nn.Module, wrapper: nn.Module, batch: Mapping[str, Any]) -> Inputs | None:
    """What the wrapper calls the model with; None where it does not come so far."""
    arrived: list[Inputs] = []

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: Inputs) -> None:
        arrived.append(_by_name(signature(module.forward), args, kwargs))
        raise _Arrived

    hook = model.register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
    try:
        with quiet(wrapper):
            wrapper(**as_mapping(model, _accepted(wrapper, batch)))
    except Exception:  # its own stop, or whatever a wrapper raises on a batch that is not for it
        pass
    finally:
        hook.remove()
    return arrived[0] if arrived else None


def _by_name(known: Signature, args: tuple[Any, ...], kwargs: Inputs) -> Inputs:
    bound = known.bind(*args, **kwargs).arguments
    free = [name for name, parameter in known.parameters.items() if parameter.kind is parameter.VAR_KEYWORD]
    return {k: v for k, v in bound.items() if k not in free} | {
        k: v for name in free for k, v in bound.get(name, {}).items()
    }


def _small(inputs: Inputs) -> Iterator[Inputs]:
    """The inputs with short texts, sounds and small pictures, if they are longer; then as they are."""
    cut = {name: _cut(value, inputs) if isinstance(value, Tensor) else value for name, value in inputs.items()}
    if any(cut[name] is not value for name, value in inputs.items()):
        yield cut
    yield inputs


def _cut(tensor: Tensor, inputs: Inputs) -> Tensor:
    """A short tensor: of tokens along its second axis, of a waveform (and of its mask) likewise, of pixels along its
    last two."""
    if tensor.dim() == 4 and tensor.is_floating_point() and min(tensor.shape[-2:]) > TRACING_IMAGE_SIZE:
        return tensor[..., :TRACING_IMAGE_SIZE, :TRACING_IMAGE_SIZE]
    waves = {t.shape[1] for t in inputs.values() if isinstance(t, Tensor) and t.dim() == 2 and t.is_floating_point()}
    length = SHORT_WAVEFORM if tensor.dim() > 1 and tensor.shape[1] in waves else SHORT
    if tensor.dim() == 2 and tensor.shape[1] > length:
        return tensor[:, :length]
    return tensor
